//! `-netdev`, and the network cards on them.

use std::ffi::OsString;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MRG_RXBUF,
};

use super::{Opt, Properties, Result, Seen};
use crate::config::{Net, TapSource, Virtio};

/// A network of the host's with a name, which a card can be on.
pub(super) struct Netdev {
    id: String,
    tap: TapSource,
    used: bool,
}

/// Properties of the device: name and type.
pub(super) const PROPERTIES: [(&str, &str); 18] = [
    ("netdev", "str"),
    ("mac", "str"),
    ("host_mtu", "uint16"),
    ("rx_queue_size", "uint16"),
    ("tx_queue_size", "uint16"),
    ("bootindex", "int32"),
    ("mq", "bool"),
    ("csum", "bool"),
    ("guest_csum", "bool"),
    ("guest_tso4", "bool"),
    ("guest_tso6", "bool"),
    ("guest_ecn", "bool"),
    ("guest_ufo", "bool"),
    ("host_tso4", "bool"),
    ("host_tso6", "bool"),
    ("host_ecn", "bool"),
    ("host_ufo", "bool"),
    ("mrg_rxbuf", "bool"),
];

/// What can be turned off.
const FEATURES: [(&str, u32); 11] = [
    ("csum", VIRTIO_NET_F_CSUM),
    ("guest_csum", VIRTIO_NET_F_GUEST_CSUM),
    ("guest_tso4", VIRTIO_NET_F_GUEST_TSO4),
    ("guest_tso6", VIRTIO_NET_F_GUEST_TSO6),
    ("guest_ecn", VIRTIO_NET_F_GUEST_ECN),
    ("guest_ufo", VIRTIO_NET_F_GUEST_UFO),
    ("host_tso4", VIRTIO_NET_F_HOST_TSO4),
    ("host_tso6", VIRTIO_NET_F_HOST_TSO6),
    ("host_ecn", VIRTIO_NET_F_HOST_ECN),
    ("host_ufo", VIRTIO_NET_F_HOST_UFO),
    ("mrg_rxbuf", VIRTIO_NET_F_MRG_RXBUF),
];

/// Bytes of an interface's name, with its NUL.
const NAME_MAX: usize = 16;

/// `-netdev tap,id=ID[,ifname=NAME][,fd=N],script=no,downscript=no`.
pub(super) fn take(seen: &mut Seen, option: &Opt, value: OsString) -> Result<()> {
    let mut properties = option.properties(value)?;
    let kind = match properties.take("type") {
        Some(kind) => kind,
        None => properties.positional("type")?,
    };
    if kind != "tap" {
        let how = "use tap; passt or slirp4netns can stand behind one, without root";
        return Err(option.error(format!("'{kind}' is not here: {how}")));
    }
    let Some(id) = properties.take("id") else {
        return Err(option.error("tap: give it an id="));
    };
    let tap = take_tap(&mut properties, option)?;
    // Frames are moved by this program whatever is asked for, as QEMU does where the host has no
    // vhost: a guest sees no difference.
    for key in ["vhost", "vhostforce", "vnet_hdr"] {
        let wish = properties.switch(key)?;
        if key == "vnet_hdr" && wish == Some(false) {
            return Err(option.error("vnet_hdr=off is not here: leave it out"));
        }
    }
    if properties.number("queues", u16::MAX.into())?.is_some_and(|queues| queues != 1) {
        return Err(option.error("queues: a card has one pair of queues here"));
    }
    if properties.has("sndbuf") {
        return Err(option.error("sndbuf= is not here: leave it out"));
    }
    properties.finish()?;
    if seen.netdevs.iter().any(|other| other.id == id) {
        return Err(option.error(format!("id={id} is there already")));
    }
    seen.netdevs.push(Netdev { id, tap, used: false });
    Ok(())
}

fn take_tap(properties: &mut Properties, option: &Opt) -> Result<TapSource> {
    let (fd, name) = (properties.number("fd", 1 << 20)?, properties.take("ifname"));
    for key in ["script", "downscript"] {
        match (properties.take(key).as_deref(), fd) {
            (Some("no" | ""), _) | (None, Some(_)) => {}
            // QEMU would run one by default.
            (None, None) if key == "script" => {
                let problem = "say script=no,downscript=no: no scripts are run here; set the \
                               interface up before";
                return Err(option.error(problem));
            }
            (None, None) => {}
            (Some(script), _) => {
                let problem = format!("{key}={script}: no scripts are run here: say {key}=no");
                return Err(option.error(problem));
            }
        }
    }
    match (fd, name) {
        (Some(_), Some(_)) => Err(option.error("give either fd= or ifname=")),
        (Some(fd), None) => Ok(TapSource::Descriptor(i32::try_from(fd).unwrap_or(i32::MAX))),
        (None, name) => {
            let name = name.unwrap_or_default();
            match name.len() < NAME_MAX && !name.contains('/') {
                true => Ok(TapSource::Name(name)),
                false => Err(option.error(format!("ifname={name}: no name of an interface"))),
            }
        }
    }
}

/// Adds the device; its netdev is looked up when all options are known.
pub(super) fn add(seen: &mut Seen, option: &Opt, properties: &mut Properties) -> Result<()> {
    let Some(netdev) = properties.take("netdev") else {
        return Err(option.error("virtio-net-device: give its netdev="));
    };
    let mac = match properties.take("mac") {
        None => default_mac(seen.cards.len()),
        Some(text) => parse_mac(&text)
            .ok_or_else(|| option.error(format!("mac={text}: give it as 52:54:00:12:34:56")))?,
    };
    let mtu = properties.number("host_mtu", u16::MAX.into())?.filter(|mtu| *mtu != 0);
    if mtu.is_some_and(|mtu| mtu < 68) {
        return Err(option.error("host_mtu: give a number from 68 up (RFC 791)"));
    }
    let mut features = 0;
    for (name, feature) in FEATURES {
        if properties.switch(name)?.unwrap_or(true) {
            features |= 1 << feature;
        }
    }
    if properties.switch("mq")? == Some(true) {
        return Err(option.error("mq=on: a card has one pair of queues here"));
    }
    properties.take("bootindex");
    let net = Net {
        tap: TapSource::Name(String::new()),
        mac,
        mtu: mtu.and_then(|mtu| u16::try_from(mtu).ok()),
        features,
        receive_size: queue_size(properties, option, "rx_queue_size")?,
        transmit_size: queue_size(properties, option, "tx_queue_size")?,
    };
    seen.cards.push((seen.config.virtio.len(), netdev));
    seen.config.virtio.push(Virtio::Net(net));
    Ok(())
}

fn queue_size(properties: &mut Properties, option: &Opt, key: &str) -> Result<u16> {
    let size = properties.number(key, 1024)?.unwrap_or(256);
    match size >= 64 && size.is_power_of_two() {
        true => Ok(u16::try_from(size).unwrap_or(256)),
        false => Err(option.error(format!("{key}={size}: give a power of two from 64 to 1024"))),
    }
}

/// QEMU's: each card has the next.
fn default_mac(card: usize) -> [u8; 6] {
    let last = 0x56_u8.wrapping_add(card.to_le_bytes()[0]);
    [0x52, 0x54, 0x00, 0x12, 0x34, last]
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() <= 2))
        .collect();
    let mac: [u8; 6] = bytes?.try_into().ok()?;
    // A group's address is nobody's own.
    (mac[0] & 1 == 0).then_some(mac)
}

/// Gives the cards their netdevs.
pub(super) fn connect(seen: &mut Seen, option: &Opt) -> Result<()> {
    for (index, id) in std::mem::take(&mut seen.cards) {
        let netdev = seen.netdevs.iter_mut().find(|netdev| netdev.id == id);
        let missing = || option.error(format!("virtio-net-device: there is no -netdev id={id}"));
        let netdev = netdev.ok_or_else(missing)?;
        if std::mem::replace(&mut netdev.used, true) {
            let problem = format!("virtio-net-device: netdev={id} has a card already");
            return Err(option.error(problem));
        }
        if let Some(Virtio::Net(net)) = seen.config.virtio.get_mut(index) {
            net.tap = netdev.tap.clone();
        }
    }
    match seen.netdevs.iter().find(|netdev| !netdev.used) {
        Some(Netdev { id, .. }) => {
            let problem =
                format!("nothing uses id={id}: add -device virtio-net-device,netdev={id}");
            Err(super::option("-netdev").error(problem))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        assert_eq!(parse_mac("52:54:00:12:34:56"), Some(default_mac(0)));
        assert_eq!(parse_mac("2-0-0-0-0-a"), Some([2, 0, 0, 0, 0, 10]));
        for wrong in ["", "52:54:00:12:34", "52:54:00:12:34:567", "01:00:00:00:00:00", "x"] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
        assert_eq!(default_mac(1)[5], 0x57);
    }
}
