//! What becomes of a question. Pure.

use std::net::IpAddr;

use simple_dns::rdata::{A, AAAA, PTR, RData};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, TYPE,
};

use crate::private::{Lease, NetworkRecord};

/// How long an answer of ours may be remembered, in seconds: sandboxes come and go.
const TTL: u32 = 5;

/// What becomes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This is the answer.
    Answer(Vec<u8>),
    /// Somebody else may know; if nobody can be asked, this is the answer.
    AskOthers(Vec<u8>),
    /// It is no question.
    Ignore,
}

/// Decides about a message from a sandbox at `from` on the network `name`, one of `all`. A sandbox may
/// ask for who is on any of its own networks.
pub fn decide(all: &[NetworkRecord], name: &str, from: IpAddr, message: &[u8]) -> Decision {
    let Ok(query) = Packet::parse(message) else { return Decision::Ignore };
    if query.has_flags(PacketFlag::RESPONSE) {
        return Decision::Ignore;
    }
    let [question] = &query.questions[..] else {
        return reply(&query, RCODE::FormatError, Vec::new())
            .map_or(Decision::Ignore, Decision::Answer);
    };
    if query.opcode() != OPCODE::StandardQuery {
        return answer(&query, RCODE::NotImplemented, Vec::new());
    }
    let Some(here) = all.iter().find(|network| network.name == name) else {
        return answer(&query, RCODE::Refused, Vec::new());
    };
    let asks = here.leases.iter().find(|(_, lease)| lease.addresses.contains(&from));
    let Some((sandbox, lease)) = asks else {
        return answer(&query, RCODE::Refused, Vec::new());
    };
    let may_ask = lease.egress.resolves_outside();
    // This network first: a name is looked for where it is asked.
    let is_another = |network: &&NetworkRecord| {
        network.name != here.name && network.leases.contains_key(sandbox)
    };
    let own: Vec<&NetworkRecord> =
        std::iter::once(here).chain(all.iter().filter(is_another)).collect();
    let name = question.qname.to_string().to_ascii_lowercase();
    if let Some(lease) = own.iter().find_map(|network| by_name(network, &name)) {
        return answer(&query, RCODE::NoError, addresses(question, lease));
    }
    if let Some(address) = backwards(&name)
        && let Some(network) =
            own.iter().find(|network| network.subnets.iter().any(|net| net.contains(&address)))
    {
        return match by_address(network, address) {
            Some(sandbox) => answer(&query, RCODE::NoError, pointers(question, sandbox)),
            None => answer(&query, RCODE::NameError, Vec::new()),
        };
    }
    if !may_ask {
        return answer(&query, RCODE::Refused, Vec::new());
    }
    // A name without a dot is one of ours or nobody's.
    if !name.contains('.') && !name.is_empty() {
        return answer(&query, RCODE::NameError, Vec::new());
    }
    match reply(&query, RCODE::ServerFailure, Vec::new()) {
        Some(bytes) => Decision::AskOthers(bytes),
        None => Decision::Ignore,
    }
}

fn answer(query: &Packet<'_>, code: RCODE, records: Vec<ResourceRecord<'_>>) -> Decision {
    reply(query, code, records).map_or(Decision::Ignore, Decision::Answer)
}

fn reply(query: &Packet<'_>, code: RCODE, records: Vec<ResourceRecord<'_>>) -> Option<Vec<u8>> {
    let mut packet = Packet::new_reply(query.id());
    packet.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    *packet.rcode_mut() = code;
    packet.questions = query.questions.clone();
    packet.answers = records;
    packet.build_bytes_vec().ok()
}

/// The sandbox of a name: its own, an alias, either with the network's name behind it.
fn by_name<'a>(network: &'a NetworkRecord, name: &str) -> Option<&'a Lease> {
    let bare = name.strip_suffix(&format!(".{}", network.name.to_ascii_lowercase()));
    let is_it = |known: &str| {
        known.eq_ignore_ascii_case(name)
            || bare.is_some_and(|bare| known.eq_ignore_ascii_case(bare))
    };
    // Names come before aliases: nobody can take another's.
    let named = network.leases.iter().find(|(sandbox, _)| is_it(sandbox));
    let aliased =
        || network.leases.iter().find(|(_, lease)| lease.aliases.iter().any(|a| is_it(a)));
    named.or_else(aliased).map(|(_, lease)| lease)
}

fn by_address(network: &NetworkRecord, address: IpAddr) -> Option<&str> {
    let has_it = |lease: &Lease| lease.addresses.contains(&address);
    network.leases.iter().find(|(_, lease)| has_it(lease)).map(|(sandbox, _)| sandbox.as_str())
}

fn addresses<'a>(question: &Question<'a>, lease: &Lease) -> Vec<ResourceRecord<'a>> {
    let wanted = |kind| matches!(question.qtype, QTYPE::ANY) || question.qtype == QTYPE::TYPE(kind);
    let record = |data| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data);
    lease
        .addresses
        .iter()
        .filter_map(|address| match address {
            IpAddr::V4(ip) if wanted(TYPE::A) => {
                Some(record(RData::A(A { address: u32::from(*ip) })))
            }
            IpAddr::V6(ip) if wanted(TYPE::AAAA) => {
                Some(record(RData::AAAA(AAAA { address: u128::from(*ip) })))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        })
        .collect()
}

fn pointers<'a>(question: &Question<'a>, sandbox: &'a str) -> Vec<ResourceRecord<'a>> {
    if !matches!(question.qtype, QTYPE::ANY | QTYPE::TYPE(TYPE::PTR)) {
        return Vec::new();
    }
    let Ok(name) = Name::new(sandbox) else { return Vec::new() };
    let data = RData::PTR(PTR(name));
    vec![ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data)]
}

/// The address a name such as `2.0.89.10.in-addr.arpa` stands for.
fn backwards(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut bytes: Vec<u8> =
            labels.split('.').map(|label| label.parse().ok()).collect::<Option<_>>()?;
        bytes.reverse();
        return Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?));
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let digit = |label: &str| u8::from_str_radix(label, 16).ok().filter(|_| label.len() == 1);
    let mut digits: Vec<u8> = labels.split('.').map(digit).collect::<Option<_>>()?;
    digits.reverse();
    let pairs = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]);
    let bytes: Vec<u8> = pairs.collect();
    (digits.len() == 32).then_some(())?;
    Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::Egress;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn lease(addresses: &[&str], alias: &str, egress: &str) -> Lease {
        Lease {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            mac: String::new(),
            tap: String::new(),
            aliases: vec![alias.to_owned()],
            published: Vec::new(),
            egress: egress.parse::<Egress>().unwrap(),
            rates: crate::rates::Rates::default(),
            forwarder: None,
        }
    }

    fn networks() -> Vec<NetworkRecord> {
        let mut other = network();
        other.name = "other".to_owned();
        other.subnets = vec!["10.1.0.0/24".parse().unwrap()];
        other.leases = BTreeMap::from([
            ("web".to_owned(), lease(&["10.1.0.2"], "", "all")),
            ("far".to_owned(), lease(&["10.1.0.3"], "", "all")),
        ]);
        vec![network(), other]
    }

    fn network() -> NetworkRecord {
        NetworkRecord {
            schema: 1,
            name: "Lab".to_owned(),
            namespace: (0, 0),
            table: String::new(),
            subnets: vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            mtu: 1500,
            is_ready: true,
            names: None,
            leases: BTreeMap::from([
                ("web".to_owned(), lease(&["10.0.0.2", "fd00::2"], "www", "all")),
                ("db".to_owned(), lease(&["10.0.0.3"], "web", "none")),
            ]),
        }
    }

    fn query(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(name, kind.into(), CLASS::IN.into(), false));
        packet.build_bytes_vec().unwrap()
    }

    /// The code and the records of the answer, as text; `?` when others are to be asked.
    fn asked(from: &str, name: &str, kind: TYPE) -> String {
        let bytes = match decide(&networks(), "Lab", from.parse().unwrap(), &query(name, kind)) {
            Decision::Answer(bytes) => bytes,
            Decision::AskOthers(_) => return "?".to_owned(),
            Decision::Ignore => return "ignored".to_owned(),
        };
        let packet = Packet::parse(&bytes).unwrap();
        let mut text = format!("{:?}", packet.rcode());
        for record in &packet.answers {
            text += &match &record.rdata {
                RData::A(a) => format!(" {}", std::net::Ipv4Addr::from(a.address)),
                RData::AAAA(a) => format!(" {}", std::net::Ipv6Addr::from(a.address)),
                RData::PTR(name) => format!(" {}", name.0),
                other => format!(" {other:?}"),
            };
        }
        text
    }

    #[test]
    fn sandboxes_are_found_by_name_alias_and_address() {
        for name in ["web", "WEB", "web.lab", "www", "www.lab"] {
            assert_eq!(asked("10.0.0.3", name, TYPE::A), "NoError 10.0.0.2", "{name}");
        }
        assert_eq!(asked("10.0.0.3", "web", TYPE::AAAA), "NoError fd00::2");
        assert_eq!(asked("10.0.0.3", "db", TYPE::AAAA), "NoError");
        assert_eq!(asked("10.0.0.3", "2.0.0.10.in-addr.arpa", TYPE::PTR), "NoError web");
        let six = format!("2.{}d.f.ip6.arpa", "0.".repeat(29));
        assert_eq!(asked("10.0.0.3", &six, TYPE::PTR), "NoError web");
        assert_eq!(asked("10.0.0.2", "9.0.0.10.in-addr.arpa", TYPE::PTR), "NameError");
    }

    #[test]
    fn a_sandbox_on_two_networks_finds_who_is_on_either() {
        assert_eq!(asked("10.0.0.2", "far", TYPE::A), "NoError 10.1.0.3");
        assert_eq!(asked("10.0.0.2", "far.other", TYPE::A), "NoError 10.1.0.3");
        assert_eq!(asked("10.0.0.2", "web", TYPE::A), "NoError 10.0.0.2");
        assert_eq!(asked("10.0.0.2", "web.other", TYPE::A), "NoError 10.1.0.2");
        assert_eq!(asked("10.0.0.3", "far", TYPE::A), "Refused", "db is on one network alone");
        assert_eq!(asked("10.1.0.3", "web", TYPE::A), "Refused", "no sandbox of this network");
    }

    #[test]
    fn the_outside_is_asked_only_for_who_may_talk_to_it() {
        assert_eq!(asked("10.0.0.2", "example.org", TYPE::A), "?");
        assert_eq!(asked("10.0.0.2", "4.3.2.1.in-addr.arpa", TYPE::PTR), "?");
        assert_eq!(asked("10.0.0.2", "nobody", TYPE::A), "NameError");
        for (from, name) in [("10.0.0.3", "example.org"), ("10.0.0.77", "example.org")] {
            assert_eq!(asked(from, name, TYPE::A), "Refused");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            decide(&networks(), "Lab", "10.0.0.2".parse().unwrap(), &bytes);
        }
    }
}
