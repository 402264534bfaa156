//! `bluebox install`: prints what a cluster needs. `bluebox uninstall`: what of it to delete.
//!
//! The manifests are those in `manifests/`, which are in this program ([`files`]) and put together as kustomize would ([`kustomize`]).

mod files;
mod kustomize;

use anyhow::{Context as _, bail};
use bluebox_injector::Settings;
use bluebox_injector::keep::Names;
use bluebox_injector::manifests::{IMAGE_KEY, SETTINGS, UID_KEY};
use bluebox_injector::redirect::Redirect;
use bluebox_injector::settings::{DEFAULT_KAFKA_SECRET, DEFAULT_NAMESPACE, DEFAULT_UID};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::print;

/// What `bluebox install --help` ends with.
const EXAMPLES: &str = "\
Examples:
  Everything as usual, with an image that the cluster's nodes can pull:
    bluebox check --pre
    bluebox install --image registry.example/bluebox:1.0 | kubectl apply -f -
    bluebox check --wait 2m

  For production, with certificates from cert-manager:
    bluebox install --image registry.example/bluebox:1.0 --with production,cert-manager | kubectl apply -f -

  A test cluster, with one Kafka in it (kafka.kafka:9092):
    bluebox install --with development | kubectl apply -f -

It only prints; nothing is asked of a cluster. The same again is an upgrade. Nothing is injected anywhere before a namespace is labelled: `bluebox enable` is next.";

/// Prints the manifests that install Bluebox into a cluster: the injector, and the policy that lets no pod run without its proxy.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InstallOptions {
    /// The image of the proxies.
    #[arg(long, value_name = "IMAGE", default_value = concat!("bluebox:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// The image of the injector; by default the one beside that of the proxies: `registry.example/bluebox-injector:1.0`.
    #[arg(long, value_name = "IMAGE")]
    injector_image: Option<String>,
    /// The namespace to install into; it is made, and nothing in it is injected.
    #[arg(long, value_name = "NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    namespace: String,
    /// What else: see manifests/components.
    #[arg(long, value_name = "COMPONENTS", value_delimiter = ',')]
    with: Vec<Component>,
    /// How many injectors run; by default two, with `production` three, with `development` one.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=20))]
    replicas: Option<u32>,
    /// How the calls of an app come to its proxy where neither its pod nor its namespace's Pod Security Standard says it: caught by `nftables`, or by `env` (HTTP_PROXY).
    #[arg(long, value_name = "nftables|env", default_value_t)]
    redirect: Redirect,
    /// The Secret in each labelled namespace that says which Kafka.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_KAFKA_SECRET)]
    kafka_secret: String,
    /// The user that proxies run as. Nothing else in a pod may run as it.
    #[arg(long, value_name = "UID", default_value_t = DEFAULT_UID)]
    proxy_uid: i64,
    /// The Secret in the namespace with which the injector's image is pulled. Proxies are pulled with that of the pod they are in.
    #[arg(long, value_name = "NAME")]
    image_pull_secret: Option<String>,
    /// What the injector logs: error, warn, info, debug, trace; or by module.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How the injector's log lines are written: text or json.
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    log_format: Option<String>,
}

/// What can be added to the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Component {
    /// One Kafka in the cluster, and one injector: for tests.
    Development,
    /// Three injectors on different nodes, of high priority, which reach nothing but the API server.
    Production,
    /// The webhook's certificate comes from cert-manager.
    CertManager,
}

/// Prints what of an installation to delete.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl get namespaces -l bluebox.dev/injection=enabled      # label them no more, and restart what is in them, first
  bluebox uninstall | kubectl delete --ignore-not-found -f -

Pods that have a proxy keep it until they are made anew. Secrets in labelled namespaces and topics in Kafka stay: what was accepted is in there.")]
pub(crate) struct UninstallOptions {
    /// The namespace that it was installed into.
    #[arg(long, value_name = "NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    namespace: String,
    /// What it was installed with.
    #[arg(long, value_name = "COMPONENTS", value_delimiter = ',')]
    with: Vec<Component>,
}

pub(crate) fn run(options: &InstallOptions) -> anyhow::Result<()> {
    print(&options.objects()?)
}

/// First what stands in the way of pods, last what they need.
pub(crate) fn run_uninstall(options: &UninstallOptions) -> anyhow::Result<()> {
    let mut objects = manifests(&options.with, &options.namespace)?;
    objects.reverse();
    let names: Vec<_> =
        objects.iter().map(|object| json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": identity(object)})).collect();
    print(&names)
}

impl InstallOptions {
    fn settings(&self) -> anyhow::Result<Settings> {
        let settings = Settings::try_new(&self.image)?.with_uid(self.proxy_uid)?;
        Ok(settings.with_kafka_secret(&self.kafka_secret)?.with_namespace(&self.namespace)?)
    }

    /// The image of the injector: as it is said, else the one beside that of the proxies.
    fn injector_image(&self) -> anyhow::Result<String> {
        if let Some(image) = &self.injector_image {
            // The same rules for both images.
            Settings::try_new(image).context("--injector-image")?;
            return Ok(image.clone());
        }
        if self.image.contains('@') {
            bail!("--image {}: from a digest it can't be known which image of the injector belongs to it; say that with --injector-image", self.image);
        }
        let (name, tag) = match self.image.rfind(':') {
            // What comes before a slash is the port of a registry.
            Some(at) if !self.image[at..].contains('/') => self.image.split_at(at),
            _ => (self.image.as_str(), ""),
        };
        Ok(format!("{name}-injector{tag}"))
    }

    /// All objects, in the order in which they are applied.
    pub(crate) fn objects(&self) -> anyhow::Result<Vec<Value>> {
        let settings = self.settings()?;
        if self.with.contains(&Component::Development) && self.with.contains(&Component::Production) {
            bail!("--with development,production: these contradict each other; take one of them");
        }
        let mut objects = manifests(&self.with, settings.namespace())?;
        let values = find(&mut objects, "ConfigMap", SETTINGS)?;
        let (uid, redirect) = (settings.uid().to_string(), self.redirect.to_string());
        for (key, value) in [(IMAGE_KEY, settings.image()), (UID_KEY, &uid), ("redirect", &redirect), ("kafka-secret", settings.kafka_secret())] {
            values["data"][key] = value.into();
        }
        let injector = find(&mut objects, "Deployment", INJECTOR)?;
        if let Some(replicas) = self.replicas {
            injector["spec"]["replicas"] = replicas.into();
        }
        let pod = &mut injector["spec"]["template"]["spec"];
        if let Some(secret) = &self.image_pull_secret {
            Settings::try_new(&self.image)?.with_kafka_secret(secret).with_context(|| "--image-pull-secret")?;
            pod["imagePullSecrets"] = json!([{"name": secret}]);
        }
        let container = &mut pod["containers"][0];
        container["image"] = self.injector_image()?.into();
        let variables = container["env"].as_array_mut().context("the injector has no env")?;
        for (name, value) in [("BLUEBOX_LOG_LEVEL", &self.log_level), ("BLUEBOX_LOG_FORMAT", &self.log_format)] {
            variables.extend(value.iter().map(|value| json!({"name": name, "value": value})));
        }
        Ok(objects)
    }
}

/// The name of what runs the injector.
const INJECTOR: &str = "bluebox-injector";

/// The manifests as they are in the files, but for the namespace.
fn manifests(with: &[Component], namespace: &str) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    kustomize::add("base", &mut objects)?;
    // In the order of the list, once each, whatever the order of the flags.
    for component in Component::value_variants().iter().filter(|component| with.contains(component)) {
        let name = component.to_possible_value().context("a component without a name")?;
        kustomize::add(&format!("components/{}", name.get_name()), &mut objects)?;
    }
    if namespace != DEFAULT_NAMESPACE {
        for object in &mut objects {
            move_to(namespace, object);
        }
    }
    Ok(objects)
}

/// Moves an object, and what it says of others, from the usual namespace to another.
fn move_to(namespace: &str, object: &mut Value) {
    if kind(object) == "Namespace" && name(object) == DEFAULT_NAMESPACE {
        object["metadata"]["name"] = namespace.into();
    }
    rename(object, namespace);
}

/// In all of a value. A namespace is named by a field `namespace`, by the selectors' label of namespaces, in the host name of the webhook, and in cert-manager's annotation.
fn rename(value: &mut Value, namespace: &str) {
    match value {
        Value::Object(fields) => {
            let selects = fields.get("key").is_some_and(|key| key == bluebox_injector::selection::NAMESPACE_NAME);
            for (key, value) in fields.iter_mut() {
                match value {
                    Value::String(text) if key == "namespace" && text == DEFAULT_NAMESPACE => namespace.clone_into(text),
                    Value::Array(values) if selects && key == "values" => {
                        for value in values.iter_mut().filter(|value| *value == DEFAULT_NAMESPACE) {
                            *value = namespace.into();
                        }
                    }
                    other => rename(other, namespace),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| rename(value, namespace)),
        Value::String(text) => {
            let (here, there) = (Names::of(DEFAULT_NAMESPACE), Names::of(namespace));
            if *text == here.host() {
                *text = there.host();
            } else if *text == format!("{DEFAULT_NAMESPACE}/{}", here.service) {
                *text = format!("{namespace}/{}", there.service);
            }
        }
        _ => {}
    }
}

/// What an installer makes: group, resource and namespace of each kind.
pub(super) fn resources() -> anyhow::Result<Vec<(String, String, Option<String>)>> {
    let mut resources = Vec::new();
    for object in manifests(&[], DEFAULT_NAMESPACE)? {
        let group = object["apiVersion"].as_str().unwrap_or_default().rsplit_once('/').map_or("", |(group, _)| group);
        let kind = kind(&object).to_lowercase();
        // Names of resources are the kinds' plurals: policy, policies.
        let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
        let resource = (group.to_owned(), plural, object["metadata"]["namespace"].as_str().map(str::to_owned));
        if !resources.contains(&resource) {
            resources.push(resource);
        }
    }
    Ok(resources)
}

fn find<'o>(objects: &'o mut [Value], wanted: &str, called: &str) -> anyhow::Result<&'o mut Value> {
    objects.iter_mut().find(|object| kind(object) == wanted && name(object) == called).with_context(|| format!("the manifests have no {wanted} {called}"))
}

/// What an object is.
pub(super) fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

/// What it is called.
pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Its name, and its namespace if it has one.
fn identity(object: &Value) -> Value {
    match object["metadata"].get("namespace") {
        Some(namespace) => json!({"name": name(object), "namespace": namespace}),
        None => json!({"name": name(object)}),
    }
}

#[cfg(test)]
mod tests {
    use bluebox_injector::manifests::{bindings, policy, webhook};
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Install {
        #[command(flatten)]
        options: InstallOptions,
    }

    fn objects(arguments: &[&str]) -> Result<Vec<Value>, String> {
        let install = Install::try_parse_from([&["install"], arguments].concat()).map_err(|error| error.to_string())?;
        install.options.objects().map_err(|error| format!("{error:#}"))
    }

    fn json(object: impl serde::Serialize) -> Value {
        serde_json::to_value(object).unwrap()
    }

    fn found<'o>(objects: &'o [Value], wanted: &str, called: &str) -> &'o Value {
        objects.iter().find(|object| kind(object) == wanted && name(object) == called).unwrap()
    }

    #[test]
    fn flags_change_what_they_name_and_nothing_else() {
        let usual = objects(&[]).unwrap();
        let changed = objects(&[
            "--image=registry.example/bluebox:7",
            "--replicas=5",
            "--kafka-secret=kafka",
            "--redirect=env",
            "--proxy-uid=777",
            "--image-pull-secret=registry",
            "--log-level=debug",
            "--log-format=json",
        ])
        .unwrap();
        let settings = &found(&changed, "ConfigMap", SETTINGS)["data"];
        assert_eq!(
            (&settings[IMAGE_KEY], &settings[UID_KEY], &settings["kafka-secret"], &settings["redirect"]),
            (&json!("registry.example/bluebox:7"), &json!("777"), &json!("kafka"), &json!("env"))
        );
        let injector = found(&changed, "Deployment", INJECTOR);
        let pod = &injector["spec"]["template"]["spec"];
        assert_eq!((&injector["spec"]["replicas"], &pod["imagePullSecrets"]), (&json!(5), &json!([{"name": "registry"}])));
        assert_eq!(pod["containers"][0]["image"], "registry.example/bluebox-injector:7");
        assert!(pod["containers"][0]["env"].as_array().unwrap().contains(&json!({"name": "BLUEBOX_LOG_LEVEL", "value": "debug"})));
        for (before, after) in usual.iter().zip(&changed).filter(|(before, _)| ![SETTINGS, INJECTOR].contains(&name(before)) || kind(before) == "Service") {
            assert_eq!(before, after);
        }
    }

    #[test]
    fn the_image_of_injectors_is_the_one_beside_that_of_proxies() {
        for (arguments, of_injector) in [
            (&["--image=r.example/bluebox:1"][..], "r.example/bluebox-injector:1"),
            (&["--image=r.example:5000/b/bluebox"], "r.example:5000/b/bluebox-injector"),
            (&["--image=b@sha256:0", "--injector-image=a@sha256:1"], "a@sha256:1"),
            (&[], concat!("bluebox-injector:", env!("CARGO_PKG_VERSION"))),
        ] {
            let made = objects(arguments).unwrap();
            assert_eq!(found(&made, "Deployment", INJECTOR)["spec"]["template"]["spec"]["containers"][0]["image"], of_injector);
        }
    }

    #[test]
    fn in_another_namespace_all_of_it_is_there() {
        let with = "--with=cert-manager,production";
        let (usual, moved) = (objects(&[with]).unwrap(), objects(&[with, "--namespace=elsewhere"]).unwrap());
        let text = serde_json::to_string(&moved).unwrap();
        for left in ["\"bluebox\"", "bluebox.svc", "bluebox/bluebox"] {
            let belongs = text.replace("\"app.kubernetes.io/part-of\":\"bluebox\"", "");
            assert!(!belongs.contains(left), "{left} is left: {belongs}");
        }
        assert_eq!(usual.len(), moved.len());
        // What is made from the code says the same.
        let names = Names::of("elsewhere");
        let moved = objects(&["--namespace=elsewhere"]).unwrap();
        assert_eq!(found(&moved, "MutatingWebhookConfiguration", &names.webhook), &json(webhook(&names)));
        assert_eq!(found(&moved, "ValidatingAdmissionPolicy", "bluebox-injected"), &json(policy()));
        for binding in bindings(&names) {
            assert_eq!(found(&moved, "ValidatingAdmissionPolicyBinding", binding.metadata.name.as_ref().unwrap()), &json(&binding));
        }
    }

    #[test]
    fn components_are_added() {
        let production = objects(&["--with=production"]).unwrap();
        assert_eq!(found(&production, "Deployment", INJECTOR)["spec"]["replicas"], 3);
        assert_eq!(objects(&["--with=production", "--replicas=4"]).unwrap()[0], production[0]);
        let development = objects(&["--with=development"]).unwrap();
        assert_eq!(found(&development, "StatefulSet", "kafka")["metadata"]["namespace"], "kafka");
        let managed = objects(&["--with=cert-manager"]).unwrap();
        assert!(!found(&managed, "Role", INJECTOR).to_string().contains("secrets"));
        assert!(!found(&managed, "ClusterRole", INJECTOR).to_string().contains("update"));
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        for (arguments, says) in [
            (&["--image=a b"][..], "the name of an image"),
            (&["--injector-image="], "the name of an image"),
            (&["--image=a@sha256:0"], "--injector-image"),
            (&["--namespace=a.b"], "a lower-case DNS label"),
            (&["--proxy-uid=0"], "a user other than root"),
            (&["--redirect=iptables"], "nftables"),
            (&["--replicas=0"], "1..=20"),
            (&["--kafka-secret=A"], "the name of a Secret"),
            (&["--image-pull-secret=A"], "the name of a Secret"),
            (&["--with=everything"], "development, production, cert-manager"),
            (&["--with=development,production"], "take one of them"),
            (&["--log-format=xml"], "json"),
        ] {
            let error = objects(arguments).unwrap_err();
            assert!(error.contains(says), "{arguments:?}: {error}");
        }
    }
}
