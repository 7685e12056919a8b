//! Addresses of an interface, as the netlink library of Kata writes them.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::ser::{Error as _, SerializeStruct};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// As Go decodes: padding is required, stray bits in the last letter are not looked at.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// An IP address as bytes: none, 4 or 16. Another number cannot be written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ip(pub Vec<u8>);

impl Ip {
    /// The address, if it is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        if let Ok(four) = <[u8; 4]>::try_from(self.0.as_slice()) {
            return Some(Ipv4Addr::from(four).into());
        }
        let sixteen = Ipv6Addr::from(<[u8; 16]>::try_from(self.0.as_slice()).ok()?);
        Some(sixteen.to_ipv4_mapped().map_or(sixteen.into(), IpAddr::from))
    }
}

impl From<IpAddr> for Ip {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(four) => Ip(four.octets().to_vec()),
            IpAddr::V6(six) => match six.to_ipv4_mapped() {
                Some(four) => Ip(four.octets().to_vec()),
                None => Ip(six.octets().to_vec()),
            },
        }
    }
}

impl Serialize for Ip {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() {
            return serializer.serialize_str("");
        }
        let none = || S::Error::custom(format!("an IP address of {} bytes", self.0.len()));
        serializer.collect_str(&self.address().ok_or_else(none)?)
    }
}

impl<'de> Deserialize<'de> for Ip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Ip;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an IP address, or an empty string")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Ip, E> {
                if text.is_empty() {
                    return Ok(Ip::default());
                }
                let address: Result<IpAddr, _> = text.parse();
                address.map(Ip::from).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// The bits of a network: none (`null`), or as many bytes as the address has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct IpMask(pub Option<Vec<u8>>);

impl IpMask {
    /// The mask of a prefix of so many bits in an address of so many bytes.
    #[must_use]
    pub fn of_prefix(bits: usize, bytes: usize) -> Self {
        let byte = |at: usize| {
            let ones = bits.saturating_sub(8 * at).min(8);
            !(0xff_u32 >> ones).to_le_bytes()[0]
        };
        IpMask(Some((0..bytes).map(byte).collect()))
    }

    /// How many bits the prefix has, if the mask is one.
    #[must_use]
    pub fn prefix(&self) -> Option<u32> {
        let bytes = self.0.as_deref()?;
        let bits: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
        let whole = IpMask::of_prefix(usize::try_from(bits).ok()?, bytes.len());
        (whole == *self).then_some(bits)
    }
}

impl Serialize for IpMask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(bytes) => serializer.serialize_str(&BASE64.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for IpMask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = IpMask;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes in base64, or a list of them")
            }
            fn visit_unit<E: serde::de::Error>(self) -> Result<IpMask, E> {
                Ok(IpMask(None))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<IpMask, E> {
                let letters: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
                let bytes = BASE64.decode(letters);
                let bytes = bytes.map_err(|_| E::invalid_value(Unexpected::Str(text), &self))?;
                Ok(IpMask(Some(bytes)))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<IpMask, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element()? {
                    bytes.push(byte);
                }
                Ok(IpMask(Some(bytes)))
            }
        }
        deserializer.deserialize_any(Bytes)
    }
}

/// An address and its network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[doc(alias = "IPNet")]
pub struct IpNet {
    /// The address.
    #[serde(rename = "IP")]
    pub ip: Ip,
    /// Which of its bits are the network's.
    #[serde(rename = "Mask")]
    pub mask: IpMask,
}

/// An address of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addr {
    /// The address and its network. Without it neither is on the wire.
    pub net: Option<IpNet>,
    /// Its label.
    pub label: String,
    /// `IFA_F_*`.
    pub flags: i64,
    /// `RT_SCOPE_*`.
    pub scope: i64,
    /// The other end of a point-to-point link.
    pub peer: Option<IpNet>,
    /// The broadcast address.
    pub broadcast: Ip,
    /// For how many seconds it is preferred.
    pub prefered_lft: i64,
    /// For how many seconds it is valid.
    pub valid_lft: i64,
}

const KEYS: &[&str] =
    &["IP", "Mask", "Label", "Flags", "Scope", "Peer", "Broadcast", "PreferedLft", "ValidLft"];

impl Serialize for Addr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Addr", KEYS.len())?;
        if let Some(net) = &self.net {
            fields.serialize_field("IP", &net.ip)?;
            fields.serialize_field("Mask", &net.mask)?;
        }
        fields.serialize_field("Label", &self.label)?;
        fields.serialize_field("Flags", &self.flags)?;
        fields.serialize_field("Scope", &self.scope)?;
        fields.serialize_field("Peer", &self.peer)?;
        fields.serialize_field("Broadcast", &self.broadcast)?;
        fields.serialize_field("PreferedLft", &self.prefered_lft)?;
        fields.serialize_field("ValidLft", &self.valid_lft)?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for Addr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Addr;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address of an interface")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Addr, A::Error> {
                let mut addr = Addr::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "IP" => addr.net.get_or_insert_default().ip = map.next_value()?,
                        "Mask" => addr.net.get_or_insert_default().mask = map.next_value()?,
                        "Label" => addr.label = map.next_value()?,
                        "Flags" => addr.flags = map.next_value()?,
                        "Scope" => addr.scope = map.next_value()?,
                        "Peer" => addr.peer = map.next_value()?,
                        "Broadcast" => addr.broadcast = map.next_value()?,
                        "PreferedLft" => addr.prefered_lft = map.next_value()?,
                        "ValidLft" => addr.valid_lft = map.next_value()?,
                        unknown => {
                            map.next_value::<IgnoredAny>()?;
                            return Err(A::Error::unknown_field(unknown, KEYS));
                        }
                    }
                }
                Ok(addr)
            }
        }
        deserializer.deserialize_struct("Addr", KEYS, Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn addresses_are_written_as_go_writes_them() {
        for (address, text) in [
            (ip("10.0.0.1"), "10.0.0.1"),
            (ip("::ffff:10.0.0.1"), "10.0.0.1"),
            (Ip(ip("::ffff:10.0.0.1").0), "10.0.0.1"),
            (Ip([&[0; 10][..], &[0xff, 0xff, 1, 2, 3, 4]].concat()), "1.2.3.4"),
            (ip("fe80::1"), "fe80::1"),
            (ip("::102:304"), "::102:304"),
            (ip("2001:db8:0:0:1:0:0:1"), "2001:db8::1:0:0:1"),
            (ip("1:0:2:3:4:5:6:7"), "1:0:2:3:4:5:6:7"),
            (Ip::default(), ""),
        ] {
            assert_eq!(serde_json::to_value(&address).unwrap(), text);
        }
    }

    #[test]
    fn an_address_of_odd_length_cannot_be_written() {
        let error = serde_json::to_string(&Ip(vec![10, 0, 1])).unwrap_err();
        assert!(error.to_string().contains("3 bytes"), "{error}");
    }

    #[test]
    fn zones_and_leading_zeros_are_no_address() {
        for text in ["fe80::1%eth0", "10.0.0.01", "10.0.0", "10.0.0.256", " 10.0.0.1"] {
            assert!(serde_json::from_value::<Ip>(text.into()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mask_has_three_forms() {
        let read = |json: &str| serde_json::from_str::<IpMask>(json);
        assert_eq!(read(r#""////AA==""#).unwrap(), IpMask::of_prefix(24, 4));
        assert_eq!(read(r#""//\r\n//AA==""#).unwrap(), IpMask::of_prefix(24, 4));
        assert_eq!(read("[255,255,255,0]").unwrap(), IpMask::of_prefix(24, 4));
        assert_eq!(read("null").unwrap(), IpMask(None));
        assert_eq!(read(r#""""#).unwrap(), IpMask(Some(vec![])));
        for json in [r#""____AA==""#, r#""////AA""#, r#""/""#, "[256]", "5"] {
            assert!(read(json).is_err(), "{json}");
        }
        assert_eq!(serde_json::to_string(&IpMask::of_prefix(24, 4)).unwrap(), r#""////AA==""#);
        assert_eq!(serde_json::to_string(&IpMask(None)).unwrap(), "null");
    }

    #[test]
    fn a_prefix_is_counted_only_where_there_is_one() {
        for bits in 0..=32 {
            let mask = IpMask::of_prefix(bits, 4);
            assert_eq!(mask.prefix(), u32::try_from(bits).ok(), "{mask:?}");
        }
        assert_eq!(IpMask(Some(vec![255, 0, 255, 0])).prefix(), None);
        assert_eq!(IpMask(None).prefix(), None);
    }

    #[test]
    fn without_a_network_neither_of_its_keys_is_written() {
        let text = serde_json::to_string(&Addr::default()).unwrap();
        assert!(text.starts_with(r#"{"Label":"""#), "{text}");
        let addr: Addr = serde_json::from_str(&text).unwrap();
        assert_eq!(addr, Addr::default());
    }
}
