//! Which names are those of components: `cart`, and what a pod's search list makes of it, `cart.shop.svc.cluster.local`.
//!
//! A component is called by its bare name. In Kubernetes a Service has longer ones too, and a resolver asks for them: the first domain of the search list is that of the pod's own
//! namespace, and `NAME.DOMAIN` there is `NAME`. Names in other namespaces are not: whether a `cart` there is the same component can't be known from here.

use std::sync::Arc;

use bluebox_core::ComponentName;
use bluebox_core::name::RESERVED;
use bluebox_core::registry::ordinal_of;

/// The search list of a pod. Cheap to clone. Without one only bare names are those of components.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    search: Arc<[String]>,
}

impl Names {
    /// With this search list: in lower case, without dots at the ends.
    pub fn new(search: Vec<String>) -> Self {
        Self { search: search.into() }
    }

    /// What could be a component's name in the name that a resolver asks for, which is in lower case and without a dot at its end: `cart` in `cart` and in `cart.shop.svc.cluster.local`.
    ///
    /// The reserved name `bluebox` is one of them.
    pub fn asked<'a>(&self, name: &'a str) -> Option<&'a str> {
        let (label, domain) = name.split_once('.').unwrap_or((name, ""));
        let own = domain.is_empty() || self.search.first().is_some_and(|own| own == domain);
        (own && may_be_one(label)).then_some(label)
    }

    /// The component in the name of one of its ordinals, as a resolver asks for it: `db` in `db-2.db` and in `db-2.db.shop.svc.cluster.local`.
    pub fn asked_ordinal<'a>(&self, name: &'a str) -> Option<&'a str> {
        let bare = self.search.first().and_then(|own| name.strip_suffix(own.as_str())?.strip_suffix('.')).unwrap_or(name);
        ordinal_of(bare).map(|(component, _)| component)
    }

    /// What could be a component's name in the host of a request, in lower case: besides those above, what the search list completes, such as `cart.shop` and `cart.shop.svc`.
    ///
    /// A bare name is one whatever it is like; a longer one may have the dot of an absolute name at its end.
    pub fn hosted<'a>(&self, host: &'a str) -> Option<&'a str> {
        let Some((label, domain)) = host.split_once('.') else { return Some(host) };
        let own = self.search.first()?;
        let domain = domain.strip_suffix('.').unwrap_or(domain);
        if domain.is_empty() || !may_be_one(label) {
            return None;
        }
        let completed = |with: &String| own.strip_prefix(domain).and_then(|rest| rest.strip_prefix('.')) == Some(with);
        (own == domain || self.search.iter().any(completed)).then_some(label)
    }
}

/// Whether a label could be a component's name.
fn may_be_one(label: &str) -> bool {
    label == RESERVED || ComponentName::try_new(label).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Names {
        Names::new(["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"].map(str::to_owned).to_vec())
    }

    #[test]
    fn a_resolver_asks_for_bare_names_and_those_of_the_own_namespace() {
        for (name, label) in [("cart", "cart"), ("cart.shop.svc.cluster.local", "cart"), ("bluebox.shop.svc.cluster.local", "bluebox")] {
            assert_eq!(pod().asked(name), Some(label), "{name}");
        }
        for name in [
            "",
            "cart.other.svc.cluster.local",
            "cart.shop",
            "a.cart.shop.svc.cluster.local",
            "shop.svc.cluster.local",
            "cart.corp.example",
            "localhost",
            "42",
            "_http._tcp.cart.shop.svc.cluster.local",
        ] {
            assert_eq!(pod().asked(name), None, "{name}");
        }
        assert_eq!(Names::default().asked("cart"), Some("cart"));
        assert_eq!(Names::default().asked("cart.shop.svc.cluster.local"), None);
    }

    #[test]
    fn ordinals_have_names_too() {
        for name in ["db-2.db", "db-2.db.shop.svc.cluster.local"] {
            assert_eq!(pod().asked_ordinal(name), Some("db"), "{name}");
        }
        for name in ["db", "db-2.cart", "db-x.db", "db-2.db.other.svc.cluster.local", "db-2.shop.svc.cluster.local"] {
            assert_eq!(pod().asked_ordinal(name), None, "{name}");
        }
    }

    #[test]
    fn a_host_is_what_the_search_list_completes_to_that() {
        for host in ["cart", "cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local", "cart.shop.svc.cluster.local."] {
            assert_eq!(pod().hosted(host), Some("cart"), "{host}");
        }
        for host in ["cart.other", "cart.", "cart.svc", "shop.svc.cluster.local", "cart.shop.svc.cluster", "cart.corp.example", "10.0.0.1", "cart..shop"] {
            assert_eq!(pod().hosted(host), None, "{host}");
        }
        assert_eq!(Names::default().hosted("cart.shop"), None);
        assert_eq!(Names::default().hosted("cart"), Some("cart"));
    }
}
