//! Asks /etc/hosts and the name servers, as the system's resolver configuration says.

use super::service::{self, SrvRecord};
use crate::serving::Member;
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Hosts, TokioResolver};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// The system's resolver configuration, as it was when it was read.
pub(super) struct System {
    resolver: TokioResolver,
    hosts: Arc<Hosts>,
    search: Search,
}

/// Why a name was not found.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    #[error("no such name")]
    NoName,
    #[error("the name has no {0}")]
    NoRecord(&'static str),
    #[error("{1} ({0})")]
    Failed(RecordType, NetError),
}

impl LookupError {
    fn new(error: NetError, record_type: RecordType) -> Self {
        match error {
            error if error.is_nx_domain() => LookupError::NoName,
            error if error.is_no_records_found() => LookupError::none(record_type),
            error => LookupError::Failed(record_type, error),
        }
    }

    /// There is no record of this type.
    fn none(record_type: RecordType) -> Self {
        LookupError::NoRecord(if record_type == RecordType::SRV { "SRV record" } else { "address" })
    }

    /// Of two reasons the one that says more: a failure, or else that the name exists.
    fn or(self, other: Self) -> Self {
        match (&self, &other) {
            (LookupError::NoName, _) | (LookupError::NoRecord(_), LookupError::Failed(..)) => other,
            _ => self,
        }
    }
}

/// The addresses of a host.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) valid_until: Instant,
    /// Why it is not known whether the host has addresses of the other family.
    pub(super) failed: Option<LookupError>,
}

impl Found {
    /// If one family is not known, those of it that were `known` before are kept.
    pub(super) fn keep(&mut self, known: impl IntoIterator<Item = IpAddr>) {
        if let Some(LookupError::Failed(record_type, _)) = self.failed {
            let ipv4 = record_type == RecordType::A;
            self.addresses.extend(known.into_iter().filter(|address| address.is_ipv4() == ipv4));
        }
    }
}

/// The addresses of one family, at least one, and until when they are valid.
type OfFamily = Result<(Vec<IpAddr>, Instant), LookupError>;

/// The addresses of both families. A failure says nothing of the addresses; of the other errors each says that there are none.
fn merged(one: OfFamily, other: OfFamily) -> Result<Found, LookupError> {
    match (one, other) {
        (Ok((mut addresses, until)), Ok((more, until_too))) => {
            addresses.extend(more);
            Ok(Found { addresses, valid_until: until.min(until_too), failed: None })
        }
        (Ok((addresses, valid_until)), Err(error)) | (Err(error), Ok((addresses, valid_until))) => {
            let failed = Some(error).filter(|error| matches!(error, LookupError::Failed(..)));
            Ok(Found { addresses, valid_until, failed })
        }
        (Err(one), Err(other)) => Err(one.or(other)),
    }
}

impl System {
    pub(super) fn read() -> Result<Self, NetError> {
        let (config, options) = read_system_conf()?;
        System::new(config, options, Hosts::from_system().unwrap_or_default())
    }

    fn new(config: ResolverConfig, options: ResolverOpts, hosts: Hosts) -> Result<Self, NetError> {
        let search = Search::new(&config, options.ndots);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        // Who asks waits for the TTL. A cache would also keep negative answers, for the zone's negative TTL.
        builder.options_mut().cache_size = 0;
        let (mut resolver, hosts) = (builder.build()?, Arc::new(hosts));
        resolver.set_hosts(hosts.clone());
        Ok(System { resolver, hosts, search })
    }

    /// The addresses of a host. The resolver's own `lookup_ip` takes a failure to learn of one family for its absence.
    pub(super) async fn addresses(&self, name: &str) -> Result<Found, LookupError> {
        let mut error = LookupError::NoName;
        for name in self.search.names(name) {
            let of_both = tokio::join!(
                self.addresses_of(name.clone(), RecordType::AAAA),
                self.addresses_of(name.clone(), RecordType::A)
            );
            match merged(of_both.0, of_both.1) {
                // Where /etc/hosts has the name, no name server needs to know it.
                Ok(found) if self.in_hosts(&name) => return Ok(Found { failed: None, ..found }),
                Ok(found) => return Ok(found),
                Err(why) => error = error.or(why),
            }
        }
        Err(error)
    }

    fn in_hosts(&self, name: &Name) -> bool {
        let has =
            |record_type| self.hosts.lookup_static_host(&Query::query(name.clone(), record_type)).is_some();
        has(RecordType::A) || has(RecordType::AAAA)
    }

    /// `name` is absolute.
    async fn addresses_of(&self, name: Name, record_type: RecordType) -> OfFamily {
        let answer = self.resolver.lookup(name, record_type).await;
        let answer = answer.map_err(|error| LookupError::new(error, record_type))?;
        let addresses: Vec<_> = answer.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
        match addresses.is_empty() {
            true => Err(LookupError::none(record_type)),
            false => Ok((addresses, answer.valid_until())),
        }
    }

    /// The servers of a service, how many of its records were left out, and until when they are valid.
    pub(super) async fn service(&self, name: &str) -> Result<(Vec<Member>, usize, Instant), LookupError> {
        let answer = self.resolver.srv_lookup(name).await;
        let answer = answer.map_err(|error| LookupError::new(error, RecordType::SRV))?;
        let records = answer.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(SrvRecord {
                priority: srv.priority,
                weight: srv.weight,
                target: srv.target.to_string(),
                port: srv.port,
            }),
            _ => None,
        });
        let records: Vec<_> = records.collect();
        if records.is_empty() {
            return Err(LookupError::none(RecordType::SRV));
        }
        let (members, left_out) = service::members(records);
        Ok((members, left_out, answer.valid_until()))
    }
}

/// What a name without a dot at its end may stand for (resolv.conf(5): `domain`, `search`, `ndots`).
struct Search {
    domains: Vec<Name>,
    ndots: usize,
}

impl Search {
    fn new(config: &ResolverConfig, ndots: usize) -> Self {
        Search { domains: config.domain().into_iter().chain(config.search()).cloned().collect(), ndots }
    }

    /// The absolute names to look up, one after the other until one is found. None if `name` is no domain name.
    fn names(&self, name: &str) -> Vec<Name> {
        let Ok(name) = Name::from_utf8(name) else { return Vec::new() };
        let mut itself = name.clone();
        itself.set_fqdn(true);
        if name.is_fqdn() {
            return vec![itself];
        }
        let mut names: Vec<Name> = Vec::new();
        for longer in self.domains.iter().filter_map(|domain| name.clone().append_domain(domain).ok()) {
            if !names.contains(&longer) {
                names.push(longer);
            }
        }
        let first = usize::from(name.num_labels()) > self.ndots || name.is_localhost();
        names.insert(if first { 0 } else { names.len() }, itself);
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OLD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    const OLD_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

    fn failed(record_type: RecordType) -> LookupError {
        LookupError::new(NetError::Timeout, record_type)
    }

    /// What stays of an old address of each family.
    fn kept(one: OfFamily, other: OfFamily) -> Vec<IpAddr> {
        let mut found = merged(one, other).unwrap();
        found.keep([OLD_V4, OLD_V6]);
        found.addresses
    }

    #[test]
    fn a_failure_keeps_the_addresses_of_its_family() {
        let until = Instant::now();
        assert_eq!(kept(Ok((vec![V6], until)), Err(failed(RecordType::A))), [V6, OLD_V4]);
        assert_eq!(kept(Err(failed(RecordType::AAAA)), Ok((vec![V4], until))), [V4, OLD_V6]);
        let found = merged(Ok((vec![V6], until)), Err(failed(RecordType::A))).unwrap();
        assert!(matches!(found.failed, Some(LookupError::Failed(RecordType::A, _))));
        assert_eq!(found.valid_until, until);
    }

    #[test]
    fn an_answer_replaces_the_addresses_of_its_family() {
        let (soon, late) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        for none in [LookupError::NoName, LookupError::none(RecordType::A)] {
            assert_eq!(kept(Ok((vec![V6], soon)), Err(none)), [V6]);
        }
        assert!(merged(Err(LookupError::NoName), Ok((vec![V4], soon))).unwrap().failed.is_none());
        assert_eq!(kept(Ok((vec![V6], late)), Ok((vec![V4], soon))), [V6, V4]);
        assert_eq!(merged(Ok((vec![V6], late)), Ok((vec![V4], soon))).unwrap().valid_until, soon);
    }

    #[test]
    fn without_an_address_the_reason_is_the_one_that_says_most() {
        let reason = |one, other| merged(Err(one), Err(other)).unwrap_err().to_string();
        let none = || LookupError::none(RecordType::A);
        assert_eq!(reason(LookupError::NoName, LookupError::NoName), "no such name");
        assert_eq!(reason(LookupError::NoName, none()), "the name has no address");
        assert_eq!(reason(none(), LookupError::NoName), "the name has no address");
        for other in [LookupError::NoName, none()] {
            assert_eq!(reason(failed(RecordType::A), other), failed(RecordType::A).to_string());
        }
        assert_eq!(reason(none(), failed(RecordType::A)), failed(RecordType::A).to_string());
    }

    #[test]
    fn names_are_searched_as_resolv_conf_says() {
        let name = |name: &str| Name::from_utf8(name).unwrap();
        let config = ResolverConfig::from_parts(
            Some(name("a.test")),
            vec![name("b.test"), name("a.test.")],
            Vec::new(),
        );
        let search = Search::new(&config, 1);
        let names = |text| search.names(text).iter().map(Name::to_string).collect::<Vec<_>>();
        assert_eq!(names("db"), ["db.a.test.", "db.b.test.", "db."]);
        assert_eq!(names("db.c"), ["db.c.", "db.c.a.test.", "db.c.b.test."]);
        assert_eq!(names("db."), ["db."]);
        assert_eq!(names("localhost")[0], "localhost.");
        assert_eq!(names("a..b"), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_name_in_etc_hosts_needs_no_name_server() {
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(&b"192.0.2.1 db\n"[..]).unwrap();
        let domain = Name::from_utf8("a.test").unwrap();
        let config = ResolverConfig::from_parts(Some(domain), Vec::new(), Vec::new());
        let system = System::new(config, ResolverOpts::default(), hosts).unwrap();
        // Also as the second of the names that it may stand for.
        let found = system.addresses("db").await.unwrap();
        assert_eq!((found.addresses, found.failed.is_none()), (vec![V4], true));
        let missing = system.addresses("other").await;
        assert!(matches!(missing, Err(LookupError::Failed(..))), "{missing:?}");
    }
}
