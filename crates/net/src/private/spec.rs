//! A network as it is asked for: `NAME[,subnet=CIDR]...[,mtu=BYTES]`. Pure.

use std::str::FromStr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::NetError;

/// A network as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// Its subnets, at most one of each family; none: an IPv4 one that is free.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub subnets: Vec<IpNet>,
    /// The largest packet in bytes; none: 1500.
    #[serde(default)]
    pub mtu: Option<u32>,
}

impl NetworkSpec {
    /// The network of whoever asks for none by name.
    pub const DEFAULT: &'static str = "default";

    /// One with nothing special about it.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), subnets: Vec::new(), mtu: None }
    }
}

/// Names are folders' names: letters, digits, `_`, `.`, `-`, at most 64, the first a letter or digit.
pub(super) fn check_name(name: &str) -> Result<(), NetError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let begins_well = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= 64 && name.chars().all(is_plain) {
        return Ok(());
    }
    Err(NetError::Text {
        what: "name of a network",
        text: name.to_owned(),
        why: "use letters, digits, `_`, `.` and `-`, at most 64, the first a letter or digit"
            .into(),
    })
}

impl FromStr for NetworkSpec {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let bad = |why: String| NetError::Text { what: "network", text: text.to_owned(), why };
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        check_name(name)?;
        let mut spec = Self::named(name);
        for word in words {
            let option = word.split_once('=');
            match option.ok_or_else(|| bad(format!("{word:?} is no OPTION=VALUE")))? {
                ("subnet", value) => {
                    let subnet: IpNet =
                        value.parse().map_err(|_| bad(format!("{value:?} is no subnet")))?;
                    let room = if subnet.addr().is_ipv4() { 30 } else { 126 };
                    if subnet.prefix_len() > room {
                        return Err(bad(format!("{subnet} has no room: /{room} is the smallest")));
                    }
                    if spec.subnets.iter().any(|s| s.addr().is_ipv4() == subnet.addr().is_ipv4()) {
                        return Err(bad("it has two subnets of one family".to_owned()));
                    }
                    spec.subnets.push(subnet.trunc());
                }
                ("mtu", value) => {
                    let mtu = value.parse().ok().filter(|mtu| (576..=65535).contains(mtu));
                    spec.mtu = Some(mtu.ok_or_else(|| bad("an MTU is 576 to 65535".to_owned()))?);
                }
                (other, _) => {
                    return Err(bad(format!(
                        "{other:?} is no option: there are `subnet` and `mtu`"
                    )));
                }
            }
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_with_its_options() {
        let spec: NetworkSpec = "lab,subnet=10.5.0.7/24,subnet=fd00::/64,mtu=1400".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.mtu), ("lab", Some(1400)));
        assert_eq!(spec.subnets[0].to_string(), "10.5.0.0/24");
        assert_eq!("lab".parse::<NetworkSpec>().unwrap(), NetworkSpec::named("lab"));
    }

    #[test]
    fn what_is_wrong_with_one_is_said() {
        for (text, why) in [
            ("", "name of a network"),
            ("../x", "name of a network"),
            ("a,subnet", "OPTION=VALUE"),
            ("a,subnet=x", "no subnet"),
            ("a,subnet=10.0.0.0/31", "no room"),
            ("a,subnet=10.0.0.0/24,subnet=10.1.0.0/24", "two subnets"),
            ("a,mtu=100", "576"),
            ("a,dns=1", "no option"),
        ] {
            let error = text.parse::<NetworkSpec>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
