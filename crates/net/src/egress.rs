//! What a sandbox may begin to talk to: `none`, `all`, or networks by name. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::NetError;

/// Where a sandbox may send to. Answers to who talks to it are always let through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Egress {
    /// Everywhere.
    #[default]
    All,
    /// To these networks alone; none: nowhere.
    Only(Vec<IpNet>),
}

impl Egress {
    /// Whether names of the outside may be looked up for it. A sandbox that is kept in must not be
    /// able to tell the outside anything by the names it asks for.
    pub fn resolves_outside(&self) -> bool {
        *self == Self::All
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Only(networks) if networks.is_empty() => f.write_str("none"),
            Self::Only(networks) => {
                let texts: Vec<String> = networks.iter().map(IpNet::to_string).collect();
                f.write_str(&texts.join(","))
            }
        }
    }
}

impl FromStr for Egress {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        match text {
            "all" => return Ok(Self::All),
            "none" => return Ok(Self::Only(Vec::new())),
            _ => {}
        }
        let network = |word: &str| {
            let alone = |_| word.parse::<IpAddr>().map(IpNet::from);
            let network = word.parse::<IpNet>().or_else(alone);
            network.map(|network| network.trunc()).map_err(|_| NetError::Text {
                what: "rule for egress",
                text: word.to_owned(),
                why: "write `none`, `all`, or networks as 10.0.0.0/8,fd00::/8".to_owned(),
            })
        };
        Ok(Self::Only(text.split(',').map(network).collect::<Result<_, _>>()?))
    }
}

impl TryFrom<String> for Egress {
    type Error = NetError;
    fn try_from(text: String) -> Result<Self, NetError> {
        text.parse()
    }
}

impl From<Egress> for String {
    fn from(egress: Egress) -> Self {
        egress.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written_back() {
        for text in ["all", "none", "10.0.0.0/8", "10.0.0.0/8,fd00::/8"] {
            assert_eq!(text.parse::<Egress>().unwrap().to_string(), text);
        }
        assert_eq!(
            "10.1.2.3/8,1.2.3.4".parse::<Egress>().unwrap().to_string(),
            "10.0.0.0/8,1.2.3.4/32"
        );
        for bad in ["", "some", "10.0.0.0/33", "10.0.0.0/8,"] {
            assert!(bad.parse::<Egress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_who_may_talk_to_everyone_may_look_up_the_outside() {
        assert!(Egress::All.resolves_outside());
        assert!(!"0.0.0.0/0".parse::<Egress>().unwrap().resolves_outside());
    }
}
