//! Which addresses belong to components, as far as the answers to the app's own questions have told.
//!
//! An app goes on using an address for longer than its answer was good for: a JVM for 30 s or for ever, a pool of connections for as long as it lives. So an address is
//! remembered for its time to live, but at least an hour, and that anew with each connection to it. What is remembered for too long does little harm: a connection to such an
//! address waits for its client's first bytes for a moment (see [`crate::transparent`]). What is forgotten too early would be a call that isn't durable.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Addresses that are remembered at once; beyond, that which was not seen for longest is forgotten.
const MOST_ADDRESSES: usize = 4096;
/// Names of one address. A pod that is several components has several.
const MOST_NAMES: usize = 8;
/// The least time that an address is remembered for.
const LEAST: Duration = Duration::from_secs(3600);
/// The longest: a time to live can say 68 years.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// For how long it is taken for known that a name has addresses.
const FRESH: Duration = Duration::from_secs(30);

/// What is remembered. Cheap to clone; clones remember together.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    remembered: Arc<Mutex<HashMap<IpAddr, Remembered>>>,
}

#[derive(Debug)]
struct Remembered {
    names: Vec<Arc<str>>,
    answered: Instant,
    seen: Instant,
    for_how_long: Duration,
}

impl Addresses {
    /// An answer said that this address is one of `name`, for `ttl`.
    pub fn learn(&self, address: IpAddr, name: &str, ttl: Duration) {
        let now = Instant::now();
        let mut remembered = self.remembered();
        if remembered.len() >= MOST_ADDRESSES && !remembered.contains_key(&address) {
            remembered.retain(|_, entry| entry.seen + entry.for_how_long > now);
            if remembered.len() >= MOST_ADDRESSES
                && let Some(oldest) = remembered.iter().min_by_key(|(_, entry)| entry.seen).map(|(address, _)| *address)
            {
                remembered.remove(&oldest);
            }
        }
        let for_how_long = ttl.clamp(LEAST, LONGEST);
        let entry = remembered.entry(address).or_insert_with(|| Remembered { names: Vec::new(), answered: now, seen: now, for_how_long });
        (entry.answered, entry.seen, entry.for_how_long) = (now, now, for_how_long);
        if let Some(there) = entry.names.iter().position(|there| &**there == name) {
            // The latest is the last.
            let name = entry.names.remove(there);
            entry.names.push(name);
            return;
        }
        if entry.names.len() >= MOST_NAMES {
            entry.names.remove(0);
        }
        entry.names.push(name.into());
    }

    /// The names whose address it is. To be asked when a connection goes there: it is remembered anew.
    pub fn names(&self, address: IpAddr) -> Vec<Arc<str>> {
        let now = Instant::now();
        let mut remembered = self.remembered();
        match remembered.get_mut(&address) {
            Some(entry) if entry.seen + entry.for_how_long > now => {
                entry.seen = now;
                entry.names.clone()
            }
            Some(_) => {
                remembered.remove(&address);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Whether an answer of the last moments had an address for this name.
    pub fn has_any(&self, name: &str) -> bool {
        let now = Instant::now();
        self.remembered().values().any(|entry| entry.answered + FRESH > now && entry.names.last().is_some_and(|there| &**there == name))
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<IpAddr, Remembered>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn names(addresses: &Addresses, number: u32) -> Vec<String> {
        addresses.names(address(number)).iter().map(|name| name.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_remembered_for_an_hour_since_it_was_last_used() {
        let addresses = Addresses::default();
        addresses.learn(address(1), "cart", Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(3599)).await;
        assert_eq!(names(&addresses, 1), ["cart"]);
        tokio::time::advance(Duration::from_secs(3599)).await;
        assert_eq!(names(&addresses, 1), ["cart"], "a connection renews it");
        tokio::time::advance(Duration::from_secs(3601)).await;
        assert!(names(&addresses, 1).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_longer_time_to_live_counts_up_to_a_day() {
        let addresses = Addresses::default();
        addresses.learn(address(1), "cart", Duration::from_secs(7200));
        addresses.learn(address(2), "cart", Duration::from_secs(u32::MAX.into()));
        tokio::time::advance(Duration::from_secs(7199)).await;
        assert_eq!(names(&addresses, 1), ["cart"]);
        tokio::time::advance(Duration::from_secs(24 * 3600)).await;
        assert!(names(&addresses, 2).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_bounded_and_the_longest_unseen_goes_first() {
        let addresses = Addresses::default();
        for number in 0..u32::try_from(MOST_ADDRESSES).unwrap() {
            addresses.learn(address(number), "cart", Duration::ZERO);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(names(&addresses, 0), ["cart"], "seen just now");
        addresses.learn(address(100_000), "new", Duration::ZERO);
        assert_eq!(addresses.remembered().len(), MOST_ADDRESSES);
        assert!(names(&addresses, 1).is_empty());
        assert_eq!(names(&addresses, 0), ["cart"]);
        assert_eq!(names(&addresses, 100_000), ["new"]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_can_have_several_names() {
        let addresses = Addresses::default();
        for number in 0..20 {
            addresses.learn(address(1), &format!("n{number}"), Duration::ZERO);
        }
        addresses.learn(address(1), "n13", Duration::ZERO);
        let names = names(&addresses, 1);
        assert_eq!(names.len(), MOST_NAMES);
        assert_eq!(names.last().unwrap(), "n13");
    }

    #[tokio::test(start_paused = true)]
    async fn whether_a_name_has_addresses_is_known_for_a_moment_only() {
        let addresses = Addresses::default();
        assert!(!addresses.has_any("cart"));
        addresses.learn(address(1), "cart", Duration::ZERO);
        assert!(addresses.has_any("cart"));
        tokio::time::advance(FRESH).await;
        assert!(!addresses.has_any("cart"));
    }
}
