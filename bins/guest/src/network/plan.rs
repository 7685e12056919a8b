//! What an adapter is to be, worked out from what the host says of it. Pure.

use std::net::IpAddr;

use coracle_bridge::message::NetworkAdapter;
use ipnet::IpNet;

use super::NetworkError;
use super::dhcp::Lease;

/// The first routing table of adapters whose default route is only for what comes from their own
/// address.
const FIRST_TABLE: u32 = 101;
/// The metric of the default route there, and of the usual one.
const LOW_METRIC: u32 = 500;
const METRIC: u32 = 1;

/// An adapter as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its name in the namespace; empty: to be chosen.
    pub name: String,
    /// Its MTU; 0: as it is, less `overhead`.
    pub mtu: u32,
    /// Bytes an encapsulation takes from the MTU.
    pub overhead: u32,
    /// Its addresses; none: to be asked of DHCP.
    pub addresses: Vec<IpNet>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// Look up what comes from these addresses in this table.
    pub rules: Vec<(IpAddr, u32)>,
    /// Neighbours that are known from the start.
    pub neighbours: Vec<(IpAddr, [u8; 6])>,
    /// The table of the default route, if it is not the main one.
    pub own_table: Option<u32>,
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub domains: Vec<String>,
    /// Where the address is from, if a server leased it.
    pub lease: Option<Lease>,
}

/// Which adapter of its namespace it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The first, which has the default route.
    First,
    /// One of the others, which leave it alone.
    Later,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// By way of whom.
    pub gateway: Option<IpAddr>,
    /// The gateway is on the link, whatever the addresses say.
    pub on_link: bool,
    /// The lower, the better; 0: the kernel's choice.
    pub metric: u32,
    /// The table; 0: the main one.
    pub table: u32,
}

impl Plan {
    /// What the host's message comes to. `taken` are the tables of the namespace's other adapters.
    pub fn of(
        adapter: &NetworkAdapter,
        position: Position,
        taken: &[u32],
    ) -> Result<Self, NetworkError> {
        let wrong = |what, value: &str| NetworkError::Adapter {
            id: adapter.id.clone(),
            what,
            value: value.to_owned(),
        };
        let address = |what, text: &str| text.parse::<IpAddr>().map_err(|_| wrong(what, text));
        let network = |what, text: &str| text.parse::<IpNet>().map_err(|_| wrong(what, text));
        let extra = adapter.coracle.clone().unwrap_or_default();

        let mac = mac(&adapter.mac_address);
        let mac = mac.ok_or_else(|| wrong("the hardware address", &adapter.mac_address))?;
        if !is_interface_name(&extra.name) {
            return Err(wrong("the name", &extra.name));
        }
        let mut addresses = Vec::new();
        if !adapter.ip_address.is_empty() {
            let ip = address("the address", &adapter.ip_address)?;
            let length = adapter.prefix_length;
            let net = IpNet::new(ip, length);
            addresses.push(net.map_err(|_| wrong("the prefix length", &length.to_string()))?);
        }
        for text in &extra.addresses {
            addresses.push(network("the address", text)?);
        }

        let mut plan = Self {
            mac,
            name: extra.name,
            mtu: extra.mtu,
            overhead: adapter.encap_overhead.into(),
            addresses,
            routes: Vec::new(),
            rules: Vec::new(),
            neighbours: Vec::new(),
            own_table: None,
            servers: words(&adapter.dns_server_list),
            domains: words(&adapter.dns_suffix),
            lease: None,
        };
        for server in &plan.servers {
            address("the name server", server)?;
        }
        let is_low = adapter.enable_low_metric || position == Position::Later;
        let mut free = (FIRST_TABLE..).filter(|table| !taken.contains(table));
        plan.own_table = free.next().filter(|_| is_low);
        for gateway in words(&adapter.gateway_address) {
            plan.add_default(address("the gateway", &gateway)?);
        }
        for route in &extra.routes {
            let destination = network("the route to", &route.destination)?.trunc();
            let gateway = Some(&route.gateway).filter(|text| !text.is_empty());
            let gateway = gateway.map(|text| address("the gateway", text)).transpose()?;
            let on_link = gateway.is_some_and(|ip| !plan.reaches(ip));
            let metric = route.metric;
            plan.routes.push(Route { destination, gateway, on_link, metric, table: 0 });
        }
        for neighbour in &extra.neighbours {
            let ip = address("the neighbour", &neighbour.address)?;
            let text = &neighbour.mac_address;
            let mac = self::mac(text).ok_or_else(|| wrong("the hardware address", text))?;
            plan.neighbours.push((ip, mac));
        }
        Ok(plan)
    }

    /// The tables it uses beside the main one.
    pub fn tables(&self) -> impl Iterator<Item = u32> {
        self.rules.iter().map(|(_, table)| *table)
    }

    /// Takes over what a DHCP server said.
    pub fn take_lease(&mut self, lease: Lease) {
        self.addresses.push(IpNet::V4(lease.address));
        if let Some(gateway) = lease.gateway {
            self.add_default(gateway.into());
        }
        if self.servers.is_empty() {
            self.servers = lease.servers.iter().map(ToString::to_string).collect();
        }
        self.lease = Some(lease);
    }

    /// The default route, in a table of the adapter's own if it is to have one.
    fn add_default(&mut self, gateway: IpAddr) {
        let destination = match gateway {
            IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        let own = self.addresses.iter().find(|net| net.addr().is_ipv4() == gateway.is_ipv4());
        let (metric, table) = match own.zip(self.own_table) {
            Some((own, table)) => {
                self.rules.push((own.addr(), table));
                (LOW_METRIC, table)
            }
            None => (METRIC, 0),
        };
        let on_link = !self.reaches(gateway);
        let route = Route { destination, gateway: Some(gateway), on_link, metric, table };
        self.routes.push(route);
    }

    /// Whether an address is in a network of the adapter's own; its link always is.
    fn reaches(&self, ip: IpAddr) -> bool {
        let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        is_link_local || self.addresses.iter().any(|net| net.contains(&ip))
    }
}

/// `00-15-5d-00-11-22` or `00:15:5d:00:11:22`.
fn mac(text: &str) -> Option<[u8; 6]> {
    let parts: Vec<&str> = text.split(['-', ':']).collect();
    let bytes: Vec<u8> = parts
        .iter()
        .filter(|p| p.len() == 2)
        .filter_map(|p| u8::from_str_radix(p, 16).ok())
        .collect();
    (parts.len() == 6).then_some(bytes)?.try_into().ok()
}

/// Empty, or what the kernel takes: 1 to 15 bytes without space, slash, colon.
fn is_interface_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%';
    name.len() < 16 && name.bytes().all(plain) && name != "." && name != ".." && name != "lo"
}

/// What commas or spaces separate.
fn words(text: &str) -> Vec<String> {
    text.split([',', ' ']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_bridge::message::{CoracleAdapter, CoracleRoute};

    fn adapter() -> NetworkAdapter {
        NetworkAdapter {
            namespace_id: "n".into(),
            id: "a".into(),
            mac_address: "00-15-5d-00-11-22".into(),
            ip_address: "10.0.0.2".into(),
            prefix_length: 24,
            gateway_address: "10.0.0.1".into(),
            dns_server_list: "10.0.0.53,fd00::53".into(),
            dns_suffix: "a.example, b.example".into(),
            ..NetworkAdapter::default()
        }
    }

    #[test]
    fn the_first_adapter_has_the_default_route() {
        let plan = Plan::of(&adapter(), Position::First, &[]).unwrap();
        assert_eq!(plan.mac, [0, 0x15, 0x5d, 0, 0x11, 0x22]);
        assert_eq!(plan.addresses, ["10.0.0.2/24".parse().unwrap()]);
        let [route] = plan.routes[..] else { panic!("{:?}", plan.routes) };
        assert_eq!((route.metric, route.table, route.on_link), (1, 0, false));
        assert_eq!(plan.servers, ["10.0.0.53", "fd00::53"]);
        assert_eq!(plan.domains, ["a.example", "b.example"]);
    }

    #[test]
    fn a_later_one_and_one_of_low_metric_route_only_what_comes_from_them() {
        let low = NetworkAdapter { enable_low_metric: true, ..adapter() };
        let later = Plan::of(&adapter(), Position::Later, &[101, 103]);
        for (plan, table) in [(Plan::of(&low, Position::First, &[]), 101), (later, 102)] {
            let plan = plan.unwrap();
            let [route] = plan.routes[..] else { panic!("{:?}", plan.routes) };
            assert_eq!((route.metric, route.table), (500, table));
            assert_eq!(plan.rules, [("10.0.0.2".parse().unwrap(), table)]);
        }
    }

    #[test]
    fn a_gateway_outside_the_subnet_is_on_the_link() {
        let plan = Plan::of(
            &NetworkAdapter { gateway_address: "192.0.2.1".into(), ..adapter() },
            Position::First,
            &[],
        );
        assert!(plan.unwrap().routes[0].on_link);
        let six = NetworkAdapter {
            ip_address: "fd00::2".into(),
            prefix_length: 64,
            gateway_address: "fe80::1".into(),
            ..adapter()
        };
        assert!(!Plan::of(&six, Position::First, &[]).unwrap().routes[0].on_link);
    }

    #[test]
    fn more_addresses_and_routes_come_in_our_own_member() {
        let extra = CoracleAdapter {
            name: "net1".into(),
            addresses: vec!["fd00::2/64".into()],
            routes: vec![CoracleRoute {
                destination: "10.9.1.7/16".into(),
                gateway: "10.0.0.9".into(),
                metric: 7,
            }],
            neighbours: vec![coracle_bridge::message::CoracleNeighbour {
                address: "10.0.0.7".into(),
                mac_address: "02:00:00:00:00:07".into(),
            }],
            mtu: 1400,
        };
        let adapter = NetworkAdapter {
            gateway_address: "10.0.0.1,fd00::1".into(),
            coracle: Some(extra),
            ..adapter()
        };
        let plan = Plan::of(&adapter, Position::First, &[]).unwrap();
        assert_eq!((plan.name.as_str(), plan.mtu, plan.addresses.len()), ("net1", 1400, 2));
        assert_eq!(plan.neighbours, [("10.0.0.7".parse().unwrap(), [2, 0, 0, 0, 0, 7])]);
        let to: Vec<String> = plan.routes.iter().map(|r| r.destination.to_string()).collect();
        assert_eq!(to, ["0.0.0.0/0", "::/0", "10.9.0.0/16"]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let cases = [
            (NetworkAdapter { mac_address: "1-2".into(), ..adapter() }, "hardware address"),
            (NetworkAdapter { mac_address: "00-15-5d-00-11-222".into(), ..adapter() }, "hardware"),
            (NetworkAdapter { ip_address: "10.0.0".into(), ..adapter() }, "the address"),
            (NetworkAdapter { prefix_length: 33, ..adapter() }, "prefix length"),
            (NetworkAdapter { gateway_address: "x".into(), ..adapter() }, "gateway"),
            (NetworkAdapter { dns_server_list: "1.1.1.1;rm".into(), ..adapter() }, "name server"),
        ];
        for (adapter, what) in cases {
            let error = Plan::of(&adapter, Position::First, &[]).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let name = |name: &str| CoracleAdapter { name: name.into(), ..CoracleAdapter::default() };
        for bad in ["lo", "a/b", "..", "sixteen-bytes-xx", "a b"] {
            let adapter = NetworkAdapter { coracle: Some(name(bad)), ..adapter() };
            assert!(Plan::of(&adapter, Position::First, &[]).is_err(), "{bad}");
        }
    }
}
