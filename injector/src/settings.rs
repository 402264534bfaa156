//! What an installation says of the proxies that it injects. No pod can change any of it.

use crate::redirect::Redirect;

/// The name of the container that is injected.
pub const PROXY: &str = "proxy";
/// The name of the init container that runs before it each time that the box starts, where app and proxy are restarted together and nothing is redirected.
pub const INCARNATE: &str = "bluebox-incarnate";
/// The name of the init container that puts the kernel's rules in place, before everything else in the pod; and does what [`INCARNATE`] does.
pub const REDIRECT: &str = "bluebox-redirect";
/// Where the proxy takes the app's requests, on loopback.
pub const OUTBOUND_PORT: u16 = 4140;
/// Where the proxy answers `/metrics`, `/healthz`, `/started`, `/readyz` and `/drained`, on all addresses: the kubelet asks.
pub const ADMIN_PORT: u16 = 4141;
/// Where the proxy is told to take no more calls, on loopback.
pub const CONTROL_PORT: u16 = 4142;
/// Where the proxy takes what the kernel's rules caught, on loopback.
pub const TRANSPARENT_PORT: u16 = 4143;
/// Where it takes the DNS that they caught, on loopback.
pub const DNS_PORT: u16 = 4153;
/// All of them.
pub const PORTS: [u16; 5] = [OUTBOUND_PORT, ADMIN_PORT, CONTROL_PORT, TRANSPARENT_PORT, DNS_PORT];
/// Where the image of the proxies has the program.
pub const PROGRAM: &str = "/bluebox";
/// The user that the proxy runs as if the installation doesn't say another.
pub const DEFAULT_UID: i64 = 64140;
/// The Secret in each namespace that says which Kafka, if the installation doesn't say another.
pub const DEFAULT_KAFKA_SECRET: &str = "bluebox-kafka";
/// The Secret in each namespace that says where the traces of its proxies go; it may be missing, and then there are none. Its keys are the names of OpenTelemetry's variables without …
pub const TRACES_SECRET: &str = "bluebox-traces";
/// … this.
pub const TRACES_PREFIX: &str = "OTEL_";
/// Its key for the addresses of brokers.
pub const BROKERS_KEY: &str = "brokers";
/// Its key for settings of librdkafka, one to a line.
pub const PROPERTIES_KEY: &str = "client.properties";
/// Its key for what names of topics begin with; it may be missing.
pub const PREFIX_KEY: &str = "topic-prefix";
/// The installation's own namespace, if it doesn't say another.
pub const DEFAULT_NAMESPACE: &str = "bluebox";

/// What an installation says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    image: String,
    uid: i64,
    kafka_secret: String,
    namespace: String,
    restart_rules: bool,
    redirect: Redirect,
}

/// A setting that an installation can't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {value:?}: {rule}")]
pub struct InvalidSetting {
    setting: &'static str,
    value: String,
    rule: &'static str,
}

impl Settings {
    /// The settings of an installation whose proxies run `image`; everything else as usual.
    ///
    /// # Errors
    /// When `image` can't be the name of an image.
    pub fn try_new(image: &str) -> Result<Self, InvalidSetting> {
        if image.is_empty() || image.len() > 512 || image.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(invalid("proxy image", image, "the name of an image, such as registry.example/bluebox:1.0"));
        }
        Ok(Self {
            image: image.to_owned(),
            uid: DEFAULT_UID,
            kafka_secret: DEFAULT_KAFKA_SECRET.to_owned(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            restart_rules: false,
            redirect: Redirect::default(),
        })
    }

    /// Whether the cluster has restart rules; by default it has none.
    #[must_use]
    pub fn with_restart_rules(mut self, there: bool) -> Self {
        self.restart_rules = there;
        self
    }

    /// How calls come to the proxies of pods that say nothing about it, in namespaces that allow it; by default caught by the kernel.
    #[must_use]
    pub fn with_redirect(mut self, redirect: Redirect) -> Self {
        self.redirect = redirect;
        self
    }

    /// With another user for the proxies.
    ///
    /// # Errors
    /// For root, and what is no user.
    pub fn with_uid(mut self, uid: i64) -> Result<Self, InvalidSetting> {
        if !(1..=i64::from(i32::MAX)).contains(&uid) {
            return Err(invalid("proxy uid", &uid.to_string(), "a user other than root: 1 to 2147483647"));
        }
        self.uid = uid;
        Ok(self)
    }

    /// With another name for the Secret that says which Kafka.
    ///
    /// # Errors
    /// When no Secret can have that name.
    pub fn with_kafka_secret(mut self, name: &str) -> Result<Self, InvalidSetting> {
        name.clone_into(&mut self.kafka_secret);
        if is_subdomain(name) { Ok(self) } else { Err(invalid("kafka secret", name, "the name of a Secret: a lower-case DNS name (RFC 1123)")) }
    }

    /// With another namespace of the installation's own.
    ///
    /// # Errors
    /// When no namespace can have that name.
    pub fn with_namespace(mut self, name: &str) -> Result<Self, InvalidSetting> {
        name.clone_into(&mut self.namespace);
        let label = is_subdomain(name) && !name.contains('.') && name.len() <= 63;
        if label { Ok(self) } else { Err(invalid("namespace", name, "a lower-case DNS label (RFC 1123)")) }
    }

    /// The image that proxies run.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Whether the cluster has restart rules.
    pub fn restart_rules(&self) -> bool {
        self.restart_rules
    }

    /// How calls come to them where nothing else is said.
    pub fn redirect(&self) -> Redirect {
        self.redirect
    }

    /// The user that they run as.
    pub fn uid(&self) -> i64 {
        self.uid
    }

    /// The Secret in each namespace that says which Kafka.
    pub fn kafka_secret(&self) -> &str {
        &self.kafka_secret
    }

    /// The installation's own namespace. Nothing in it is injected.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

fn invalid(setting: &'static str, value: &str, rule: &'static str) -> InvalidSetting {
    InvalidSetting { setting, value: value.chars().take(80).collect(), rule }
}

/// Whether a text is a lower-case DNS name, as Kubernetes names most things (RFC 1123).
fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.bytes().all(legal) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_set() {
        let settings = Settings::try_new("bluebox:1").unwrap().with_uid(7).unwrap().with_kafka_secret("kafka.prod").unwrap().with_namespace("b").unwrap();
        assert_eq!((settings.image(), settings.uid(), settings.kafka_secret(), settings.namespace()), ("bluebox:1", 7, "kafka.prod", "b"));
    }

    #[test]
    fn what_can_t_be_is_refused() {
        let settings = Settings::try_new("bluebox:1").unwrap();
        for refused in [
            Settings::try_new(""),
            Settings::try_new("a b"),
            settings.clone().with_uid(0),
            settings.clone().with_uid(1 << 40),
            settings.clone().with_kafka_secret("Kafka"),
            settings.clone().with_kafka_secret("a..b"),
            settings.clone().with_namespace("a.b"),
            settings.with_namespace("-a"),
        ] {
            refused.unwrap_err();
        }
    }
}
