//! The entropy device (section 5.4): fills the driver's buffers with random bytes.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Broken, Buffers, Device, Interrupt, Ring, Server, Wake, Work};

/// Bytes for one chain at the most: who wants more asks again.
const CHAIN_MAX: usize = 64 << 10;

/// The device, and where it has its bytes from.
pub struct Rng {
    source: Arc<File>,
}

impl Rng {
    /// A device that reads from `source`.
    pub fn new(source: &Path) -> io::Result<Self> {
        Ok(Self { source: Arc::new(File::open(source)?) })
    }
}

impl Device for Rng {
    fn name(&self) -> &'static str {
        "virtio-rng"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queues(&self) -> Vec<u16> {
        // As in QEMU.
        vec![8]
    }

    fn start(&self, _: u64, _: &Arc<Interrupt>) -> io::Result<Vec<Work>> {
        let server = Box::new(Filler(self.source.clone()));
        Ok(vec![Work { queues: vec![0], server }])
    }
}

struct Filler(Arc<File>);

impl Filler {
    /// Bytes that were written to the buffers: fewer than there is room for when the source has
    /// run dry.
    fn fill(&self, buffers: &Buffers<'_>) -> usize {
        let mut bytes = [0; 256];
        let (mut filled, mut rest) = (0, buffers.truncated(CHAIN_MAX));
        while !rest.is_empty() {
            let wanted = rest.len().min(bytes.len());
            let Some(part) = bytes.get_mut(..wanted) else { break };
            let Ok(count @ 1..) = (&*self.0).read(part) else { break };
            filled += rest.copy_from(part.get(..count).unwrap_or_default());
            let Some((_, after)) = rest.split_at(count) else { break };
            rest = after;
        }
        filled
    }
}

impl Server for Filler {
    fn serve(&mut self, rings: &mut [Ring], wake: &Wake<'_>) -> Result<(), Broken> {
        let serve =
            |ring: &mut Ring| ring.drain(wake.memory(), |chain| Ok(self.fill(&chain.writable)));
        rings.iter_mut().try_for_each(serve)
    }
}
