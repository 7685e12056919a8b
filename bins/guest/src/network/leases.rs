//! Addresses that were leased: what is to be come back for, and what is done then.
//!
//! While its server answers, an address is renewed and nothing else changes. When it is refused, or over, it is
//! taken from the device with its routes, and another is asked for until somebody leases one.

use std::time::{Duration, Instant};

use super::dhcp::{Answer, Lease};
use super::plan::Plan;
use super::tenure::{Due, Tenure};
use super::{Entry, Networks};

/// Between two questions for an address by a device that has lost its own.
const LOST_PAUSE: Duration = Duration::from_secs(10);

/// What is to be come back for.
#[derive(Debug)]
pub struct Term {
    namespace: String,
    id: String,
    number: u64,
    /// When.
    pub due: Instant,
}

/// An adapter whose address is leased.
#[derive(Debug)]
pub(super) struct Tenant {
    /// An adapter of the same id that comes later is another.
    number: u64,
    /// What the host said of it.
    given: Plan,
    /// None: it has no address just now.
    tenure: Option<Tenure>,
}

impl Networks {
    /// Does what is due for a leased address, and tells when to come back; never, if its adapter is gone. May
    /// block for some seconds.
    pub fn renew(&mut self, term: Term) -> Option<Term> {
        let due = self.spaces.get_mut(&term.namespace)?.renew(&term.id, term.number)?;
        Some(Term { due, ..term })
    }

    /// What is to be come back for, if the address of a new adapter is leased.
    pub(super) fn term(
        &mut self,
        namespace: &str,
        id: &str,
        asked: Instant,
        given: Plan,
    ) -> Option<Term> {
        let entry = self.spaces.get_mut(namespace)?;
        let terms = entry.adapters.get(id)?.lease.as_ref()?.terms?;
        self.leases += 1;
        let (number, tenure) = (self.leases, Tenure::new(asked, terms));
        let overhead = if given.mtu == 0 { 0 } else { given.overhead };
        // Where the device's own MTU counts, the overhead has been taken off it.
        let given = Plan { overhead, ..given };
        entry.tenants.insert(id.to_owned(), Tenant { number, given, tenure: Some(tenure) });
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        Some(Term { namespace, id, number, due: tenure.first() })
    }
}

impl Entry {
    fn renew(&mut self, id: &str, number: u64) -> Option<Instant> {
        let tenant = self.tenants.get(id).filter(|tenant| tenant.number == number)?;
        let plan = self.adapters.get(id)?;
        let Some((tenure, lease)) = tenant.tenure.zip(plan.lease.as_ref()) else {
            return self.lease_anew(id);
        };
        let asked = Instant::now();
        let anyone = match tenure.due(asked) {
            Due::Renew => false,
            Due::Rebind => true,
            Due::Lost => return self.lease_anew(id),
        };
        match self.space.renew(plan, lease, anyone) {
            Ok(Answer::Renewed(new)) if is_same(&new, lease) => self.go_on(id, new, asked),
            Ok(Answer::Renewed(_) | Answer::Refused) => self.lease_anew(id),
            Ok(Answer::Silence) => Some(tenure.again(Instant::now())),
            Err(error) => {
                tracing::warn!(adapter = id, ?error, "cannot ask for more of a lease");
                Some(tenure.again(Instant::now()))
            }
        }
    }

    /// The lease begins anew; all that may differ are the name servers.
    fn go_on(&mut self, id: &str, lease: Lease, asked: Instant) -> Option<Instant> {
        let (tenant, plan) = (self.tenants.get_mut(id)?, self.adapters.get_mut(id)?);
        let tenure = lease.terms.map(|terms| Tenure::new(asked, terms));
        if tenant.given.servers.is_empty() && !lease.servers.is_empty() {
            plan.servers = lease.servers.iter().map(ToString::to_string).collect();
        }
        plan.lease = Some(lease);
        tenant.tenure = tenure;
        self.write_files();
        tenure.map(|tenure| tenure.first())
    }

    fn lease_anew(&mut self, id: &str) -> Option<Instant> {
        let (tenant, old) = (self.tenants.get_mut(id)?, self.adapters.get_mut(id)?);
        let mut plan = tenant.given.clone();
        let asked = Instant::now();
        let leased = self.space.lease_anew(old, &mut plan);
        // Also after a failure: what of it is there is taken away the next time.
        *old = plan;
        let terms = old.lease.as_ref().map(|lease| lease.terms);
        let due = match (leased, terms) {
            (Ok(()), Some(terms)) => {
                tenant.tenure = terms.map(|terms| Tenure::new(asked, terms));
                tracing::info!(adapter = id, addresses = ?old.addresses, "has another address");
                tenant.tenure.map(|tenure| tenure.first())
            }
            (Ok(()), None) => None,
            (Err(error), _) => {
                tenant.tenure = None;
                tracing::warn!(adapter = id, ?error, "has no address any more");
                Some(Instant::now() + LOST_PAUSE)
            }
        };
        self.write_files();
        due
    }

    /// Containers see the old name servers if it fails, which is no reason to give an address up.
    fn write_files(&mut self) {
        if let Err(error) = self.files.write(self.adapters.values()) {
            tracing::warn!(?error, "cannot tell containers of their name servers");
        }
    }
}

/// Whether only its end is another.
fn is_same(new: &Lease, old: &Lease) -> bool {
    (new.address, new.gateway) == (old.address, old.gateway)
}
