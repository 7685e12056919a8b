//! Two devices joined at the hip: whatever comes in on one goes out on the other.
//!
//! This is how a VM gets the very interface that somebody else prepared in a namespace, with its
//! hardware address and all, and without a bridge in between: an ingress queue on each, and a filter
//! that matches everything (u32, which every kernel has) and redirects it.

use crate::Result;
use crate::link::{index, set, unsupported};

/// ETH_P_ALL.
const EVERY_PROTOCOL: u16 = 0x0003;
/// The handle of an ingress queue.
const INGRESS: u32 = 0xffff_0000;

/// Joins two devices of this thread's namespace, both up.
///
/// # Errors
/// Either is not there; the kernel lacks the ingress queue, u32 or mirred. What was made of it goes
/// with either device.
pub fn join(one: &str, other: &str) -> Result<()> {
    let (first, second) = (index(one)?, index(other)?);
    for (from, to, name) in [(first, second, one), (second, first, other)] {
        let from = from.cast_signed();
        set(&format!("give {name} an ingress queue"), async |netlink| {
            netlink.qdisc().add(from).ingress().execute().await
        })
        .map_err(|error| unsupported(error, "ingress queue", "CONFIG_NET_SCH_INGRESS"))?;
        set(&format!("redirect what comes in on {name}"), async |netlink| {
            netlink
                .traffic_filter(from)
                .add()
                .parent(INGRESS)
                .protocol(EVERY_PROTOCOL.to_be())
                .redirect(to)?
                .execute()
                .await
        })
        .map_err(|error| unsupported(error, "u32 filter", "CONFIG_NET_CLS_U32"))?;
    }
    Ok(())
}

/// Takes a device's half away. There being none is success.
///
/// # Errors
/// The device is not there.
pub fn part(name: &str) -> Result<()> {
    let index = index(name)?.cast_signed();
    let removed = set(&format!("take the ingress queue of {name} away"), async |netlink| {
        use rtnetlink::packet_route::tc::TcHandle;
        let mut del = netlink.qdisc().del(index);
        let message = del.message_mut();
        message.header.parent = TcHandle::INGRESS;
        message.header.handle = TcHandle { major: 0xffff, minor: 0 };
        del.execute().await
    });
    match removed {
        // ENOENT or EINVAL: it has none.
        Err(error) if matches!(crate::netlink::errno_of(&error), Some(2 | 22)) => Ok(()),
        other => other,
    }
}
