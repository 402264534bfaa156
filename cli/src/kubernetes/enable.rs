//! `bluebox enable NAMESPACE`: prints what a namespace needs so that its pods get proxies: its label, and the Secret that tells them which Kafka.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bluebox_core::log::kafka::KafkaConfig;
use bluebox_core::topics::Prefix;
use bluebox_injector::Settings;
use bluebox_injector::container::KAFKA_PATH;
use bluebox_injector::selection::{ENABLED, INJECTION, KUBE_SYSTEM};
use bluebox_injector::settings::{BROKERS_KEY, DEFAULT_KAFKA_SECRET, DEFAULT_NAMESPACE, PREFIX_KEY, PROPERTIES_KEY};
use clap::Args;
use serde_json::{Value, json};

use super::print;
use crate::log::{parse_brokers, parse_properties};

/// What `bluebox enable --help` ends with.
const EXAMPLES: &str = "\
Examples:
  bluebox enable shop --brokers kafka.kafka:9092 | kubectl apply -f -
  kubectl -n shop rollout restart deployment,statefulset,daemonset

  With TLS and SCRAM; the password comes from a file, or with `-` from standard input:
    bluebox enable shop --brokers kafka-1:9093,kafka-2:9093 --ca ca.pem --sasl-username shop --sasl-password-file password | kubectl apply -f -

  With a certificate of its own (mutual TLS):
    bluebox enable shop --brokers kafka-1:9093 --ca ca.pem --certificate shop.pem --key shop.key | kubectl apply -f -

  With a file of settings of librdkafka, as docs/kafka.md has them; files that it names (ssl.ca.location=ca.pem) are put into the Secret:
    bluebox enable shop --brokers kafka-1:9093 --client-properties client.properties | kubectl apply -f -

  Only the label, where something else makes the Secret:
    bluebox enable shop --no-secret | kubectl apply -f -

What is printed contains the password: pipe it, don't keep it. Pods that run already get their proxy when they are made anew.
Namespaces with the same Kafka and the same --topic-prefix are one system: a `cart` in each of them is the same component.";

/// Prints the label that asks for proxies in a namespace, and the Secret that tells them which Kafka.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EnableOptions {
    /// The namespace; it is made if it isn't there.
    #[arg(value_name = "NAMESPACE")]
    namespace: String,
    /// Kafka: one or more of its brokers, HOST:PORT[,HOST:PORT…], as the pods reach them.
    #[arg(long, value_name = "BROKERS", value_parser = parse_brokers, required_unless_present = "no_secret")]
    brokers: Option<String>,
    /// Names of topics begin with it; by default `bluebox`. Namespaces with one Kafka are kept apart by it.
    #[arg(long, value_name = "PREFIX", value_parser = |text: &str| Prefix::try_new(text))]
    topic_prefix: Option<Prefix>,
    /// Settings of librdkafka, one to a line; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    client_properties: Option<PathBuf>,
    /// The authorities that the brokers' certificates are checked against, in PEM. With it the connection is TLS.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate that is shown to the brokers, in PEM.
    #[arg(long, value_name = "FILE", requires = "key", requires = "ca")]
    certificate: Option<PathBuf>,
    /// Its key, in PEM.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// The user, for SASL.
    #[arg(long, value_name = "NAME", requires = "sasl_password_file")]
    sasl_username: Option<String>,
    /// A file with that user's password; `-` is standard input.
    #[arg(long, value_name = "FILE", requires = "sasl_username")]
    sasl_password_file: Option<PathBuf>,
    /// How the password is proven.
    #[arg(long, value_name = "MECHANISM", value_parser = ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"], default_value = "SCRAM-SHA-512")]
    sasl_mechanism: String,
    /// The name of the Secret: what `bluebox install --kafka-secret` said.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_KAFKA_SECRET)]
    kafka_secret: String,
    /// Print no Secret: something else makes it, with the keys brokers, client.properties and, if wanted, topic-prefix.
    #[arg(long, conflicts_with_all = ["brokers", "topic_prefix", "client_properties", "ca", "certificate", "key", "sasl_username", "sasl_password_file"])]
    no_secret: bool,
    /// Bluebox's own namespace.
    #[arg(long, value_name = "NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    install_namespace: String,
}

pub(crate) fn run(options: &EnableOptions) -> anyhow::Result<()> {
    let objects = options.objects(&mut |notice| eprintln!("{notice}"))?;
    print(&objects)?;
    eprintln!("Next: pods that run already get their proxy when they are made anew: kubectl -n {} rollout restart deployment", options.namespace);
    Ok(())
}

impl EnableOptions {
    fn objects(&self, notice: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Value>> {
        // The rule for names is the same for all namespaces.
        let settings = Settings::try_new("bluebox")?.with_namespace(&self.install_namespace)?.with_kafka_secret(&self.kafka_secret)?;
        settings.clone().with_namespace(&self.namespace)?;
        if [KUBE_SYSTEM, settings.namespace()].contains(&self.namespace.as_str()) {
            bail!("namespace {:?}: nothing is injected there, whatever its labels say; take the namespace of your apps", self.namespace);
        }
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": {INJECTION: ENABLED}}});
        if self.no_secret {
            return Ok(vec![namespace]);
        }
        let data: BTreeMap<_, _> = self.data(notice)?.into_iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": settings.kafka_secret(), "namespace": self.namespace, "labels": {"app.kubernetes.io/part-of": "bluebox"}},
            "data": data,
        });
        Ok(vec![namespace, secret])
    }

    /// What is in the Secret.
    fn data(&self, notice: &mut dyn FnMut(&str)) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        let brokers = self.brokers.clone().unwrap_or_default();
        let (mut properties, directory) = match &self.client_properties {
            Some(file) => (parse_properties(&read_text(file)?, &shown(file))?, file.parent().map(Path::to_owned).unwrap_or_default()),
            None => (BTreeMap::new(), PathBuf::new()),
        };
        // Paths in a file are meant from where it is; those on the command line from here.
        for (_, value) in properties.iter_mut().filter(|(name, _)| name.ends_with(LOCATION)) {
            *value = directory.join(&*value).to_string_lossy().into_owned();
        }
        self.add_flags(&mut properties, notice)?;
        let mut config = KafkaConfig::new(&brokers);
        config.properties.clone_from(&properties);
        config.check().context("the proxies would refuse it")?;

        let mut data = BTreeMap::new();
        for (name, value) in properties.iter_mut().filter(|(name, _)| name.ends_with(LOCATION)) {
            let bytes = std::fs::read(&*value)
                .with_context(|| format!("{name}: {value}: can't be read; what it names has to be on this machine, it is put into the Secret"))?;
            let pem = ["ssl.ca", "ssl.certificate", "ssl.key"].iter().any(|kind| name.strip_suffix(LOCATION) == Some(kind));
            if pem && !String::from_utf8_lossy(&bytes).contains("-----BEGIN ") {
                bail!("{name}: {value}: there is no PEM in it (-----BEGIN …)");
            }
            let key = name.trim_end_matches(LOCATION).to_owned();
            *value = format!("{KAFKA_PATH}/{key}");
            data.insert(key, bytes);
        }
        let lines: String = properties.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        data.insert(BROKERS_KEY.to_owned(), brokers.into_bytes());
        data.insert(PROPERTIES_KEY.to_owned(), lines.into_bytes());
        if let Some(prefix) = &self.topic_prefix {
            data.insert(PREFIX_KEY.to_owned(), prefix.as_str().to_owned().into_bytes());
        }
        Ok(data)
    }

    /// What the flags say, as settings of librdkafka.
    fn add_flags(&self, properties: &mut BTreeMap<String, String>, notice: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let password = match &self.sasl_password_file {
            Some(file) if file == Path::new("-") && self.client_properties.as_deref() == Some(file) => {
                bail!("--client-properties - and --sasl-password-file -: standard input can only be one of them");
            }
            Some(file) => Some(password(&read_text(file)?).with_context(|| shown(file))?),
            None => None,
        };
        let sasl = self.sasl_username.is_some();
        let said = [
            ("ssl.ca.location", path(&self.ca), "--ca"),
            ("ssl.certificate.location", path(&self.certificate), "--certificate"),
            ("ssl.key.location", path(&self.key), "--key"),
            ("sasl.mechanism", sasl.then(|| self.sasl_mechanism.clone()), "--sasl-username"),
            ("sasl.username", self.sasl_username.clone(), "--sasl-username"),
            ("sasl.password", password, "--sasl-password-file"),
        ];
        for (name, value, flag) in said {
            let Some(value) = value else { continue };
            if properties.insert(name.to_owned(), value).is_some() {
                bail!("{name} is said twice: in --client-properties and by {flag}; take one of them");
            }
        }
        let protocol = match (self.ca.is_some(), sasl) {
            (true, true) => "SASL_SSL",
            (true, false) => "SSL",
            (false, true) => "SASL_PLAINTEXT",
            (false, false) => return Ok(()),
        };
        let protocol = properties.entry("security.protocol".to_owned()).or_insert_with(|| protocol.to_owned());
        if protocol.eq_ignore_ascii_case("SASL_PLAINTEXT") {
            notice("warning: without --ca the connections to Kafka are not encrypted");
        }
        Ok(())
    }
}

/// What the names of settings end with that name a file.
const LOCATION: &str = ".location";

/// A password, as one line.
fn password(text: &str) -> anyhow::Result<String> {
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains('\n') || line.trim() != line {
        bail!("a password is one line, not empty, without spaces at its ends");
    }
    Ok(line.to_owned())
}

fn shown(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

fn read_text(file: &Path) -> anyhow::Result<String> {
    if file != Path::new("-") {
        return std::fs::read_to_string(file).with_context(|| format!("{}: can't be read", file.display()));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("standard input: can't be read")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tempfile::TempDir;

    use super::*;

    #[derive(Parser)]
    struct Enable {
        #[command(flatten)]
        options: EnableOptions,
    }

    struct Files(TempDir);

    impl Files {
        fn new(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for (name, text) in files {
                std::fs::write(directory.path().join(name), text).unwrap();
            }
            Self(directory)
        }

        /// `@NAME` is a file in here.
        fn enable(&self, arguments: &[&str]) -> Result<(Vec<Value>, Vec<String>), String> {
            let arguments = arguments.iter().map(|argument| match argument.split_once('@') {
                Some((flag, name)) => format!("{flag}{}", self.0.path().join(name).display()),
                None => (*argument).to_owned(),
            });
            let enable = Enable::try_parse_from(std::iter::once("enable".to_owned()).chain(arguments)).map_err(|error| error.to_string())?;
            let mut notices = Vec::new();
            let objects = enable.options.objects(&mut |notice| notices.push(notice.to_owned())).map_err(|error| format!("{error:#}"))?;
            Ok((objects, notices))
        }
    }

    fn data(secret: &Value, key: &str) -> String {
        String::from_utf8(STANDARD.decode(secret["data"][key].as_str().unwrap_or_default()).unwrap()).unwrap()
    }

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_label_and_a_secret() {
        let (objects, notices) = Files::new(&[]).enable(&["shop", "--brokers=a:1,b:2", "--topic-prefix=shop"]).unwrap();
        assert_eq!(objects[0]["metadata"], json!({"name": "shop", "labels": {INJECTION: "enabled"}}));
        assert_eq!((&objects[1]["metadata"]["name"], &objects[1]["metadata"]["namespace"]), (&json!("bluebox-kafka"), &json!("shop")));
        assert_eq!((data(&objects[1], "brokers"), data(&objects[1], "topic-prefix")), ("a:1,b:2".to_owned(), "shop".to_owned()));
        assert!(objects[1]["data"].get("client.properties").is_some() && notices.is_empty());
        let (objects, _) = Files::new(&[]).enable(&["shop", "--no-secret"]).unwrap();
        assert_eq!(objects.len(), 1);
    }

    #[test]
    fn tls_and_sasl_by_flags_and_by_file_are_the_same() {
        let files = Files::new(&[
            ("ca.pem", PEM),
            ("password", "geheim\n"),
            (
                "client.properties",
                "# ours\nsecurity.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nsasl.username=shop\nsasl.password=geheim\nssl.ca.location=ca.pem\n",
            ),
        ]);
        let flags = files.enable(&["shop", "--brokers=a:1", "--ca=@ca.pem", "--sasl-username=shop", "--sasl-password-file=@password"]).unwrap();
        let file = files.enable(&["shop", "--brokers=a:1", "--client-properties=@client.properties"]).unwrap();
        assert_eq!(flags, file);
        let secret = &flags.0[1];
        assert_eq!(data(secret, "ssl.ca"), PEM);
        let properties = data(secret, "client.properties");
        for line in ["security.protocol=SASL_SSL", "sasl.password=geheim", "ssl.ca.location=/etc/bluebox/kafka/ssl.ca", "sasl.mechanism=SCRAM-SHA-512"] {
            assert!(properties.lines().any(|one| one == line), "{line}: {properties}");
        }
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        let files = Files::new(&[
            ("ca.pem", PEM),
            ("no.pem", "hello"),
            ("empty", "\n"),
            ("twice", "ssl.ca.location=ca.pem\n"),
            ("fixed", "acks=1\n"),
            ("gone", "ssl.ca.location=gone.pem\n"),
            ("broken", "acks\n"),
        ]);
        let shop = |more: &[&str]| files.enable(&[&["shop", "--brokers=a:1"], more].concat()).unwrap_err();
        for (error, says) in [
            (files.enable(&["shop"]).unwrap_err(), "--brokers"),
            (files.enable(&["Shop", "--brokers=a:1"]).unwrap_err(), "DNS label"),
            (files.enable(&["kube-system", "--brokers=a:1"]).unwrap_err(), "the namespace of your apps"),
            (files.enable(&["bluebox", "--brokers=a:1"]).unwrap_err(), "the namespace of your apps"),
            (files.enable(&["shop", "--brokers=a"]).unwrap_err(), "HOST:PORT"),
            (shop(&["--topic-prefix=a b"]), "topic-prefix"),
            (shop(&["--ca=@no.pem"]), "no PEM in it"),
            (shop(&["--ca=@away.pem"]), "can't be read"),
            (shop(&["--certificate=@ca.pem"]), "--key"),
            (shop(&["--sasl-username=a"]), "--sasl-password-file"),
            (shop(&["--sasl-username=a", "--sasl-password-file=@empty"]), "one line"),
            (shop(&["--client-properties=@twice", "--ca=@ca.pem"]), "said twice"),
            (shop(&["--client-properties=@fixed"]), "\"acks\" can't be set"),
            (shop(&["--client-properties=@gone"]), "has to be on this machine"),
            (shop(&["--client-properties=@broken"]), "broken:1: a setting is written as KEY=VALUE"),
            (shop(&["--client-properties=-", "--sasl-username=a", "--sasl-password-file=-"]), "only be one of them"),
        ] {
            assert!(error.contains(says), "{says}: {error}");
        }
    }

    #[test]
    fn without_tls_it_warns() {
        let (_, notices) = Files::new(&[("p", "x")]).enable(&["shop", "--brokers=a:1", "--sasl-username=a", "--sasl-password-file=@p"]).unwrap();
        assert!(notices[0].contains("not encrypted"));
    }
}
