//! A request to a disk (section 5.2.6).
//!
//! It has a header, data or not, and a byte for the outcome.

use std::io;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::image::SECTOR;
use super::{Backend, Queue, RANGE_MAX};
use crate::console;
use crate::virtio::{Buffers, Chain};

/// Bytes of a header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of what is to be discarded: sector, sectors, flags.
const RANGE: usize = 16;
const ID: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Why a request is not done.
enum Refusal {
    /// There is no such request.
    Unsupported,
    /// It asks for what the disk does not have.
    Invalid,
    /// The host.
    Host(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// Whether what `chain` asks for waits for the medium, as a rule.
pub(super) fn is_slow(queue: &Queue, chain: &Chain<'_>) -> bool {
    match chain.readable.read::<4>().map(u32::from_le_bytes) {
        Some(VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => true,
        Some(VIRTIO_BLK_T_OUT) => queue.writes_through(),
        _ => false,
    }
}

/// Does what `chain` asks for; bytes that were written to it. `None` when it is no request.
pub(super) fn execute(queue: &Queue, chain: &Chain<'_>) -> Option<usize> {
    let header = chain.readable.read::<HEADER>()?;
    let (_, output) = chain.readable.split_at(HEADER)?;
    let (input, status) = chain.writable.split_at(chain.writable.len().checked_sub(1)?)?;
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([a, b, c, d]);
    let outcome = perform(queue, kind, u64::from_le_bytes(sector), &output, &input);
    let (code, written) = match outcome {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        Err(Refusal::Invalid) => (VIRTIO_BLK_S_IOERR, 0),
        Err(Refusal::Host(error)) => {
            // Who is stopped is no fault of the host's, and nobody waits for the answer.
            if !queue.interrupt.is_stopped() {
                tell(&queue.backend, kind, &error);
            }
            (VIRTIO_BLK_S_IOERR, 0)
        }
    };
    status.copy_from(&[code.to_le_bytes()[0]]);
    // What lies before the status is written, or its contents are undefined.
    Some(if written == 0 { 1 } else { written + 1 })
}

/// Says, once, what the host has against it.
fn tell(backend: &Backend, kind: u32, error: &io::Error) {
    if !backend.told.swap(true, Ordering::SeqCst) {
        let what = match kind {
            VIRTIO_BLK_T_IN => "reading",
            VIRTIO_BLK_T_FLUSH => "flushing",
            _ => "writing",
        };
        let name = &backend.name;
        console::say(&format!("virtio-blk: {what} '{name}': {error}; the guest is told"));
    }
}

fn perform(
    queue: &Queue,
    kind: u32,
    sector: u64,
    output: &Buffers<'_>,
    input: &Buffers<'_>,
) -> Result<usize, Refusal> {
    let backend = &*queue.backend;
    match kind {
        VIRTIO_BLK_T_IN => {
            let offset = offset(backend, sector, input.len())?;
            backend.image.read(offset, input)?;
            return Ok(input.len());
        }
        VIRTIO_BLK_T_GET_ID => return Ok(give_id(backend, input)),
        VIRTIO_BLK_T_FLUSH => backend.image.flush()?,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
            if backend.read_only =>
        {
            return Err(Refusal::Invalid);
        }
        VIRTIO_BLK_T_OUT => {
            let offset = offset(backend, sector, output.len())?;
            backend.image.write(offset, output, queue.writes_through())?;
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => change_range(queue, kind, output)?,
        _ => return Err(Refusal::Unsupported),
    }
    Ok(0)
}

/// Where `sector` is in the image, if `length` bytes from there on are whole sectors of it.
fn offset(backend: &Backend, sector: u64, length: usize) -> Result<u64, Refusal> {
    let length = length as u64;
    let end = sector.checked_add(length / SECTOR).ok_or(Refusal::Invalid)?;
    if !length.is_multiple_of(SECTOR) || end > backend.image.sectors() {
        return Err(Refusal::Invalid);
    }
    // No more than the image's size, which is a file's.
    Ok(sector * SECTOR)
}

/// The disk's serial number, without a NUL where it is as long as may be.
fn give_id(backend: &Backend, input: &Buffers<'_>) -> usize {
    let mut id = [0; ID];
    id.iter_mut().zip(backend.serial.bytes()).for_each(|(to, from)| *to = from);
    input.copy_from(&id)
}

fn change_range(queue: &Queue, kind: u32, output: &Buffers<'_>) -> Result<(), Refusal> {
    let range = output.read::<RANGE>().filter(|_| output.len() == RANGE);
    let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] =
        range.ok_or(Refusal::Invalid)?;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([c0, c1, c2, c3]);
    let flags = u32::from_le_bytes(flags);
    let is_discard = kind == VIRTIO_BLK_T_DISCARD;
    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || is_discard && flags != 0 {
        return Err(Refusal::Unsupported);
    }
    if sectors == 0 || sectors > RANGE_MAX {
        return Err(Refusal::Invalid);
    }
    let bytes = u64::from(sectors) * SECTOR;
    let offset = offset(&queue.backend, sector, usize::try_from(bytes).unwrap_or(usize::MAX))?;
    let image = &queue.backend.image;
    if is_discard {
        return Ok(image.discard(offset, bytes)?);
    }
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    image.write_zeroes((offset, bytes), unmap, || queue.interrupt.is_stopped())?;
    if queue.writes_through() {
        image.flush()?;
    }
    Ok(())
}
