//! The name server of a network with whatever a sandbox asks.

use std::sync::LazyLock;

use coracle_net::dns::{Decision, decide};
use coracle_net::private::NetworkRecord;

/// Two networks, of which one sandbox is on both.
static NETWORKS: LazyLock<Vec<NetworkRecord>> = LazyLock::new(|| {
    let lease = |address: &str, egress: &str| {
        format!(r#"{{"addresses":["{address}"],"mac":"","tap":"","egress":"{egress}"}}"#)
    };
    let network = |name: &str, subnet: &str, leases: &str| {
        let text = format!(
            r#"{{"schema":1,"name":"{name}","namespace":[0,0],"table":"","subnets":["{subnet}"],
                "mtu":1500,"is_ready":true,"leases":{{{leases}}}}}"#
        );
        serde_json::from_str(&text).expect("the record is one")
    };
    let one = format!(r#""web":{},"db":{}"#, lease("10.0.0.2", "all"), lease("10.0.0.3", "none"));
    let two = format!(r#""web":{}"#, lease("fd00::2", "all"));
    vec![network("lab", "10.0.0.0/24", &one), network("six", "fd00::/64", &two)]
});

/// A message from one who may ask the outside, one who may not, and one who is nobody. Whatever it is,
/// only the first may have it passed on, and an answer carries the number of its question.
///
/// # Panics
/// When it is otherwise.
pub fn name_question(message: &[u8]) {
    for (from, may_ask) in [("10.0.0.2", true), ("10.0.0.3", false), ("10.0.0.9", false)] {
        let from = from.parse().expect("an address");
        match decide(&NETWORKS, "lab", from, message) {
            Decision::Answer(answer) => assert_eq!(answer.get(..2), message.get(..2)),
            Decision::AskOthers(failure) => {
                assert!(may_ask, "{from} may not ask the outside");
                assert_eq!(failure.get(..2), message.get(..2));
            }
            Decision::Ignore => {}
        }
    }
}
