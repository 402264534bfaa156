//! Whether what `bluebox install` makes is there, and works.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bluebox_injector::certificates::Certificates;
use bluebox_injector::keep::{KEY, Names};
use bluebox_injector::manifests::{IMAGE_KEY, POLICY, SETTINGS, UID_KEY, bindings, policy, webhook};
use bluebox_injector::{Settings, trust};
use serde_json::Value;

use super::report::{Check, Section};
use super::text;
use crate::kubernetes::cluster::{Asked, Cluster};

/// A certificate that runs out so soon should have been renewed long ago.
const SOON: Duration = Duration::from_secs(5 * 24 * 3600);

/// What was seen of an installation.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Where its things are.
    pub(super) names: Names,
    /// When it was looked.
    pub(super) now: SystemTime,
    /// The ConfigMap that injector and policy agree on.
    pub(super) settings: Asked,
    /// What runs the injector.
    pub(super) injector: Asked,
    /// By which addresses its Service is reached.
    pub(super) endpoints: Result<Vec<Value>, String>,
    /// When the API server asks it.
    pub(super) webhook: Asked,
    /// The Secret with its certificates.
    pub(super) certificates: Asked,
    /// What the API server checks itself.
    pub(super) policy: Asked,
    /// For which pods.
    pub(super) bindings: [Asked; 2],
}

impl Seen {
    /// Asks a cluster.
    pub(super) async fn ask(cluster: &Cluster, namespace: &str) -> Self {
        let names = Names::of(namespace);
        let path = |group: &str, resource: &str, name: &str| format!("/{group}/namespaces/{namespace}/{resource}/{name}");
        let admission = |resource: &str, name: &str| format!("/apis/admissionregistration.k8s.io/v1/{resource}/{name}");
        let injector = cluster.get(&path("apis/apps/v1", "deployments", &names.service)).await;
        let secret = injector.as_ref().ok().and_then(Option::as_ref).and_then(mounted_certificate).unwrap_or_else(|| names.secret.clone());
        let (settings, endpoints, webhook, certificates, policy, namespaces, pods) = tokio::join!(
            async { cluster.get(&path("api/v1", "configmaps", SETTINGS)).await },
            async {
                let of = format!("endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{}", names.service);
                cluster.list(&format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/{of}")).await
            },
            async { cluster.get(&admission("mutatingwebhookconfigurations", &names.webhook)).await },
            async { cluster.get(&path("api/v1", "secrets", &secret)).await },
            async { cluster.get(&admission("validatingadmissionpolicies", POLICY)).await },
            async { cluster.get(&admission("validatingadmissionpolicybindings", &format!("{POLICY}-namespaces"))).await },
            async { cluster.get(&admission("validatingadmissionpolicybindings", &format!("{POLICY}-pods"))).await },
        );
        let now = SystemTime::now();
        Self { names, now, settings, injector, endpoints, webhook, certificates, policy, bindings: [namespaces, pods] }
    }

    /// What the installation says of its proxies; `None` if it can't be known, or makes no sense.
    pub(super) fn settings(&self) -> Option<Settings> {
        let data = &self.settings.as_ref().ok()?.as_ref()?["data"];
        let value = |key: &str| data[key].as_str();
        let settings = Settings::try_new(value(IMAGE_KEY)?).ok()?.with_uid(value(UID_KEY)?.parse().ok()?).ok()?;
        settings.with_kafka_secret(value("kafka-secret")?).ok()?.with_namespace(&self.names.namespace).ok()
    }
}

/// The Secret that is mounted where the injector finds its certificate, if it doesn't make that itself.
fn mounted_certificate(injector: &Value) -> Option<String> {
    let pod = injector.pointer("/spec/template/spec")?;
    let variables = pod["containers"][0]["env"].as_array()?;
    let directory = variables.iter().find(|variable| variable["name"] == "BLUEBOX_CERTIFICATE")?["value"].as_str()?;
    let mount = pod["containers"][0]["volumeMounts"].as_array()?.iter().find(|mount| mount["mountPath"] == directory)?;
    let volume = pod["volumes"].as_array()?.iter().find(|volume| volume["name"] == mount["name"])?;
    Some(volume["secret"]["secretName"].as_str()?.to_owned())
}

/// What to do when something of it is not there.
const INSTALL: &str = "bluebox install | kubectl apply -f -   (with the flags that it was installed with)";

/// The judgement over what was seen.
pub(super) fn judge(seen: &Seen) -> Section {
    let mut checks = vec![settings(seen), injector(seen), image(seen), endpoints(seen)];
    checks.push(same("the webhook is asked about the right pods", &seen.webhook, "MutatingWebhookConfiguration", json(webhook(&seen.names))));
    checks.push(trusted(seen));
    checks.push(same("the API server checks that no pod runs without its proxy", &seen.policy, "ValidatingAdmissionPolicy", json(policy())));
    for (binding, there) in bindings(&seen.names).into_iter().zip(&seen.bindings) {
        let of = if binding.metadata.name.as_deref().is_some_and(|name| name.ends_with("-pods")) { "labelled pods elsewhere" } else { "labelled namespaces" };
        checks.push(same(&format!("… for {of}"), there, "ValidatingAdmissionPolicyBinding", json(binding)));
    }
    Section { name: "the installation".to_owned(), checks }
}

fn json(object: impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn unknown(name: &str, why: &str) -> Check {
    Check::warning(name, why, "let somebody look who may read it")
}

fn settings(seen: &Seen) -> Check {
    let name = "there are settings, and they make sense";
    match &seen.settings {
        Err(why) => unknown(name, why),
        Ok(None) => Check::failed(name, format!("there is no ConfigMap {}/{SETTINGS}: every labelled pod is denied", seen.names.namespace), INSTALL),
        Ok(Some(map)) => match seen.settings() {
            Some(settings) => Check::ok_because(name, format!("proxies run {}", settings.image())),
            None => Check::failed(name, format!("{SETTINGS}: {}", map["data"]), INSTALL),
        },
    }
}

fn injector(seen: &Seen) -> Check {
    let name = "all injectors are ready";
    let look = format!("kubectl -n {0} get pods; kubectl -n {0} logs deployment/{1}", seen.names.namespace, seen.names.service);
    match &seen.injector {
        Err(why) => unknown(name, why),
        Ok(None) => Check::failed(name, format!("there is no Deployment {}/{}", seen.names.namespace, seen.names.service), INSTALL),
        Ok(Some(injector)) => {
            let wanted = injector["spec"]["replicas"].as_u64().unwrap_or(1);
            let count = |what: &str| injector["status"][what].as_u64().unwrap_or(0);
            let (ready, updated) = (count("readyReplicas"), count("updatedReplicas"));
            let said = format!("{ready} of {wanted} are ready, {updated} are as the Deployment says now");
            let seen_by_controller = injector["status"]["observedGeneration"].as_u64() >= injector["metadata"]["generation"].as_u64();
            match ready {
                0 => Check::failed(name, format!("{said}: labelled pods wait until one is"), look),
                _ if ready < wanted || updated < wanted || !seen_by_controller => Check::warning(name, said, look),
                _ => Check::ok_because(name, format!("{ready} of {wanted}")),
            }
        }
    }
}

/// Injectors and proxies have an image each.
fn image(seen: &Seen) -> Check {
    let name = "injectors and proxies are of one version";
    let Some(settings) = seen.settings() else { return unknown(name, "the settings are not known") };
    let Ok(Some(injector)) = &seen.injector else { return unknown(name, "the injector is not known") };
    let of_injector = text(injector, "/spec/template/spec/containers/0/image");
    let tag = |image: &str| image.rsplit_once('/').map_or(image, |(_, name)| name).rsplit_once([':', '@']).map_or(String::new(), |(_, tag)| tag.to_owned());
    if tag(of_injector) == tag(settings.image()) {
        return Check::ok(name);
    }
    Check::warning(
        name,
        format!("injectors run {of_injector}, proxies {}", settings.image()),
        "install with an --image alone, or with an --image and an --injector-image of one version",
    )
}

fn endpoints(seen: &Seen) -> Check {
    let name = "the API server finds an injector by its Service";
    match &seen.endpoints {
        Err(why) => unknown(name, why),
        Ok(slices) => {
            let ready = |endpoint: &&Value| endpoint["conditions"]["ready"] != false;
            let addresses = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten()).filter(ready).count();
            if addresses > 0 {
                return Check::ok(name);
            }
            Check::failed(
                name,
                format!("Service {}/{} has no address that is ready", seen.names.namespace, seen.names.service),
                "as above; and look whether something changed the Service's selector",
            )
        }
    }
}

/// Whether something is as this version makes it.
fn same(name: &str, there: &Asked, kind: &str, wanted: Value) -> Check {
    match there {
        Err(why) => unknown(name, why),
        Ok(None) => Check::failed(name, format!("there is no {kind} {}", text(&wanted, "/metadata/name")), INSTALL),
        Ok(Some(there)) => match difference(&wanted, there, "") {
            None => Check::ok(name),
            Some(place) => Check::warning(name, format!("{kind} {}: {place} is not as this version makes it", text(&wanted, "/metadata/name")), INSTALL),
        },
    }
}

/// Where something is not as wanted. What is there besides, the API server has added.
fn difference(wanted: &Value, there: &Value, place: &str) -> Option<String> {
    match (wanted, there) {
        (Value::Object(wanted), Value::Object(there)) => {
            wanted.iter().find_map(|(key, value)| difference(value, there.get(key).unwrap_or(&Value::Null), &format!("{place}.{key}")))
        }
        (Value::Array(wanted), Value::Array(there)) if wanted.len() == there.len() => {
            wanted.iter().zip(there).enumerate().find_map(|(number, (wanted, there))| difference(wanted, there, &format!("{place}[{number}]")))
        }
        _ if wanted == there => None,
        _ => Some(place.trim_start_matches('.').to_owned()),
    }
}

/// Whether the API server trusts what the webhook shows, and for how long.
fn trusted(seen: &Seen) -> Check {
    let name = "the API server trusts the webhook's certificate";
    let Ok(Some(webhook)) = &seen.webhook else { return unknown(name, "the webhook is not known") };
    let bundles: Vec<_> = webhook["webhooks"].as_array().into_iter().flatten().map(|one| text(one, "/clientConfig/caBundle")).collect();
    let logs = format!("the injector writes it within 10 s of its start: kubectl -n {} logs deployment/{}", seen.names.namespace, seen.names.service);
    if bundles.iter().any(|bundle| bundle.is_empty()) {
        return Check::failed(name, "its configuration has no CA bundle (webhooks[].clientConfig.caBundle)", logs);
    }
    if bundles.windows(2).any(|two| two[0] != two[1]) {
        return Check::failed(name, "the CA bundles in its configuration are not the same", logs);
    }
    let bundle = decoded(bundles.first().copied().unwrap_or_default());
    let shown = match &seen.certificates {
        Err(why) => return unknown(name, why),
        Ok(None) => return Check::failed(name, "the Secret with the certificate is not there", INSTALL),
        Ok(Some(secret)) => match (&secret["data"][KEY], &secret["data"]["tls.crt"]) {
            (Value::String(all), _) => match serde_json::from_str::<Certificates>(&decoded(all)) {
                Ok(all) => all.shown().certificate().to_owned(),
                Err(error) => return Check::failed(name, format!("Secret {}: {error}", text(secret, "/metadata/name")), logs),
            },
            (_, Value::String(chain)) => decoded(chain),
            _ => return Check::failed(name, format!("Secret {}: there is no certificate in it yet", text(secret, "/metadata/name")), logs),
        },
    };
    if let Err(why) = trust::check(&bundle, &shown, &seen.names.host(), seen.now) {
        return Check::failed(name, why, format!("{logs}\nIf its clock or yours is wrong, mend that first"));
    }
    let left = trust::good_until(&bundle, &shown, &seen.names.host(), seen.now).and_then(|until| until.duration_since(seen.now).ok()).unwrap_or_default();
    let said = format!("for {} days more", left.as_secs() / (24 * 3600));
    if left < SOON { Check::warning(name, said, logs) } else { Check::ok_because(name, said) }
}

fn decoded(base64: &str) -> String {
    STANDARD.decode(base64).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::report::Status;
    use super::*;

    fn seen() -> Seen {
        let (names, now) = (Names::of("bluebox"), SystemTime::now());
        let all = Certificates::at(None, &names.host(), now).unwrap();
        let mut configuration = json(webhook(&names));
        for one in configuration["webhooks"].as_array_mut().unwrap() {
            one["clientConfig"]["caBundle"] = STANDARD.encode(all.bundle()).into();
            one["added"] = "by the API server".into();
        }
        Seen {
            now,
            settings: Ok(Some(json!({"data": {"proxy-image": "r.example/bluebox:1", "proxy-uid": "64140", "kafka-secret": "bluebox-kafka"}}))),
            injector: Ok(Some(json!({
                "metadata": {"generation": 3}, "spec": {"replicas": 2, "template": {"spec": {"containers": [{"image": "r.example/bluebox:1"}]}}},
                "status": {"readyReplicas": 2, "updatedReplicas": 2, "observedGeneration": 3},
            }))),
            endpoints: Ok(vec![json!({"endpoints": [{"conditions": {"ready": true}}]})]),
            webhook: Ok(Some(configuration)),
            certificates: Ok(Some(json!({"metadata": {"name": names.secret}, "data": {KEY: STANDARD.encode(serde_json::to_string(&all).unwrap())}}))),
            policy: Ok(Some(json(policy()))),
            bindings: bindings(&names).map(|binding| Ok(Some(json(binding)))),
            names,
        }
    }

    fn found(change: impl FnOnce(&mut Seen)) -> Vec<(Status, String)> {
        let mut seen = seen();
        change(&mut seen);
        let bad: Vec<_> = judge(&seen).checks.into_iter().filter(|check| check.status != Status::Ok).collect();
        for check in &bad {
            assert!(check.hint.is_some(), "{check:?} has no hint");
        }
        bad.into_iter().map(|check| (check.status, format!("{}: {}", check.name, check.why.join("; ")))).collect()
    }

    fn at<'v>(asked: &'v mut Asked, pointer: &str) -> &'v mut Value {
        asked.as_mut().unwrap().as_mut().unwrap().pointer_mut(pointer).unwrap()
    }

    #[test]
    fn an_installation_that_works() {
        assert_eq!(found(|_| {}), []);
    }

    type Case = (Box<dyn FnOnce(&mut Seen)>, Status, &'static str);

    #[test]
    fn each_thing_that_is_wrong_is_found_alone() {
        let day = Duration::from_secs(24 * 3600);
        let cases: Vec<Case> = vec![
            (Box::new(|seen| *at(&mut seen.injector, "/status/readyReplicas") = 0.into()), Status::Failed, "0 of 2 are ready"),
            (Box::new(|seen| *at(&mut seen.injector, "/status/readyReplicas") = 1.into()), Status::Warning, "1 of 2 are ready"),
            (Box::new(|seen| *at(&mut seen.injector, "/status/observedGeneration") = 2.into()), Status::Warning, "2 of 2 are ready"),
            (Box::new(|seen| *at(&mut seen.injector, "/spec/template/spec/containers/0/image") = "b:2".into()), Status::Warning, "injectors run b:2"),
            (Box::new(|seen| seen.endpoints = Ok(Vec::new())), Status::Failed, "has no address that is ready"),
            (Box::new(|seen| *at(&mut seen.webhook, "/webhooks/1/failurePolicy") = "Fail".into()), Status::Warning, "webhooks[1].failurePolicy is not as"),
            (Box::new(|seen| *at(&mut seen.webhook, "/webhooks/0/clientConfig/caBundle") = "".into()), Status::Failed, "has no CA bundle"),
            (Box::new(|seen| *at(&mut seen.webhook, "/webhooks/0/clientConfig/caBundle") = "eA==".into()), Status::Failed, "are not the same"),
            (Box::new(|seen| seen.certificates = Ok(None)), Status::Failed, "is not there"),
            (Box::new(|seen| *at(&mut seen.certificates, "/data") = json!(null)), Status::Failed, "no certificate in it yet"),
            (Box::new(|seen| seen.certificates = Err("forbidden".to_owned())), Status::Warning, "forbidden"),
            (Box::new(move |seen| seen.now += 27 * day), Status::Warning, "for 3 days more"),
            (Box::new(move |seen| seen.now += 31 * day), Status::Failed, "certificate"),
            (Box::new(|seen| seen.policy = Ok(None)), Status::Failed, "no ValidatingAdmissionPolicy bluebox-injected"),
            (Box::new(|seen| seen.bindings[1] = Ok(None)), Status::Failed, "labelled pods elsewhere"),
            (Box::new(|seen| *at(&mut seen.bindings[0], "/spec/validationActions/0") = "Audit".into()), Status::Warning, "spec.validationActions[0]"),
        ];
        for (change, status, says) in cases {
            let found = found(change);
            assert!(found.len() == 1 && found[0].0 == status && found[0].1.contains(says), "{says}: {found:?}");
        }
    }

    #[test]
    fn without_settings_or_without_anything() {
        let found = found(|seen| {
            seen.settings = Ok(None);
            seen.webhook = Ok(None);
            seen.injector = Ok(None);
        });
        assert_eq!(found.iter().filter(|(status, _)| *status == Status::Failed).count(), 3, "{found:?}");
    }

    #[test]
    fn a_certificate_from_elsewhere_is_found_by_its_mount() {
        let injector = json!({"spec": {"template": {"spec": {
            "containers": [{"env": [{"name": "BLUEBOX_CERTIFICATE", "value": "/tls"}], "volumeMounts": [{"name": "t", "mountPath": "/tls"}]}],
            "volumes": [{"name": "t", "secret": {"secretName": "bluebox-injector-tls"}}],
        }}}});
        assert_eq!(mounted_certificate(&injector).as_deref(), Some("bluebox-injector-tls"));
        let found = found(|seen| {
            let all: Certificates =
                serde_json::from_str(&decoded(text(seen.certificates.as_ref().unwrap().as_ref().unwrap(), &format!("/data/{KEY}")))).unwrap();
            seen.certificates = Ok(Some(json!({"metadata": {"name": "x"}, "data": {"tls.crt": STANDARD.encode(all.shown().certificate())}})));
        });
        assert_eq!(found, []);
    }
}
