//! The vocabulary of rules: what matches, what happens.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use nftables::expr::{
    CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadField,
    Prefix, SetItem,
};
use nftables::schema::{Chain, NfListObject, Rule};
use nftables::stmt::{Accept, Drop, Limit, Match, NAT, NATFamily, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::Rules;

/// A table under construction.
pub(super) struct Builder<'a> {
    pub(super) rules: &'a mut Rules,
    pub(super) family: NfFamily,
    pub(super) table: String,
}

impl Builder<'_> {
    /// A chain that lets through what no rule of it drops.
    pub(super) fn chain(&mut self, name: &'static str, kind: NfChainType, hook: NfHook, prio: i32) {
        self.rules.batch.add(NfListObject::Chain(Chain {
            family: self.family,
            table: self.table.clone().into(),
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(prio),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        }));
    }

    /// One more rule at the end of a chain.
    pub(super) fn rule(&mut self, chain: &'static str, statements: Vec<Statement<'static>>) {
        self.rules.batch.add(NfListObject::Rule(Rule {
            family: self.family,
            table: self.table.clone().into(),
            chain: chain.into(),
            expr: statements.into(),
            ..Rule::default()
        }));
    }
}

pub(super) fn accept() -> Statement<'static> {
    Statement::Accept(Some(Accept {}))
}

pub(super) fn drop_it() -> Statement<'static> {
    Statement::Drop(Some(Drop {}))
}

pub(super) fn masquerade() -> Statement<'static> {
    Statement::Masquerade(None)
}

/// More than so many bytes a second. What comes at once may be a twentieth of a second's, and never
/// less than a few of the largest packets a VM hands over.
pub(super) fn is_faster_than(bytes: u64) -> Statement<'static> {
    const LEAST_BURST: u64 = 256 << 10;
    // The form has room for 4 GiB/s: beyond it, in KiB.
    let (rate, unit) = match u32::try_from(bytes) {
        Ok(bytes) => (bytes, "bytes"),
        Err(_) => (u32::try_from(bytes / 1024).unwrap_or(u32::MAX), "kbytes"),
    };
    let burst = u32::try_from((bytes / 20).max(LEAST_BURST)).unwrap_or(u32::MAX);
    Statement::Limit(Limit {
        rate,
        rate_unit: Some(unit.into()),
        per: Some("second".into()),
        burst: Some(burst),
        burst_unit: Some("bytes".into()),
        inv: Some(true),
    })
}

pub(super) fn dnat(to: IpAddr, port: u16) -> Statement<'static> {
    Statement::DNAT(Some(NAT {
        addr: Some(text(to.to_string())),
        family: Some(if to.is_ipv4() { NATFamily::IP } else { NATFamily::IP6 }),
        port: Some(Expression::Number(port.into())),
        flags: None,
    }))
}

fn compare(
    left: Expression<'static>,
    op: Operator,
    right: Expression<'static>,
) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

pub(super) fn is(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::EQ, right)
}

pub(super) fn is_not(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::NEQ, right)
}

pub(super) fn text(word: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(word.into())
}

pub(super) fn number(value: u32) -> Expression<'static> {
    Expression::Number(value)
}

/// A field of a header: `ip saddr`, `tcp dport`.
pub(super) fn field(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

pub(super) fn comes_in_on(device: &str) -> Statement<'static> {
    is(meta(MetaKey::Iifname), text(device.to_owned()))
}

pub(super) fn comes_in_elsewhere(device: &str) -> Statement<'static> {
    is_not(meta(MetaKey::Iifname), text(device.to_owned()))
}

pub(super) fn goes_out_on(device: &str) -> Statement<'static> {
    is(meta(MetaKey::Oifname), text(device.to_owned()))
}

pub(super) fn goes_out_elsewhere(device: &str) -> Statement<'static> {
    is_not(meta(MetaKey::Oifname), text(device.to_owned()))
}

pub(super) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

/// The packet belongs to a conversation that somebody else began.
pub(super) fn is_an_answer() -> Statement<'static> {
    let state = CT { key: "state".into(), family: None, dir: None };
    let states = Expression::List(vec![text("established"), text("related")]);
    compare(Expression::Named(NamedExpression::CT(state)), Operator::IN, states)
}

/// The packet was redirected by a published port.
pub(super) fn was_redirected() -> Statement<'static> {
    let status = CT { key: "status".into(), family: None, dir: None };
    compare(Expression::Named(NamedExpression::CT(status)), Operator::IN, text("dnat"))
}

/// The packet is for this host.
pub(super) fn is_for_this_host() -> Statement<'static> {
    let fib = Fib { result: FibResult::Type, flags: [FibFlag::Daddr].into() };
    is(Expression::Named(NamedExpression::Fib(fib)), text("local"))
}

/// `ip` or `ip6`.
pub(super) fn header_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

pub(super) fn network(net: &IpNet) -> Expression<'static> {
    if net.prefix_len() == net.max_prefix_len() {
        return text(net.addr().to_string());
    }
    let addr = Box::new(text(net.network().to_string()));
    Expression::Named(NamedExpression::Prefix(Prefix { addr, len: net.prefix_len().into() }))
}

/// Any of these networks, which are of one family and do not overlap.
pub(super) fn any_of<'a>(nets: impl Iterator<Item = &'a IpNet>) -> Expression<'static> {
    let items = nets.map(|net| SetItem::Element(network(net))).collect();
    Expression::Named(NamedExpression::Set(items))
}
