//! What the API server has to know: when to ask the webhook, and which pods not to let in without a proxy. Both are made from the one list of exemptions.

use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, MutatingWebhook, MutatingWebhookConfiguration, NamedRuleWithOperations, ParamKind, ParamRef, RuleWithOperations,
    ServiceReference, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicyBindingSpec, ValidatingAdmissionPolicySpec,
    Validation, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};

use crate::container::{BOX_PATH, BOX_VOLUME, EMPTY_VOLUME, NET_ADMIN, PROGRAM_PATH, PROGRAM_VOLUME};
use crate::keep::Names;
use crate::review::TIMEOUT;
use crate::selection::{DISABLED, ENABLED, EXEMPTIONS, INJECTION, KUBE_SYSTEM, NAMESPACE_NAME};
use crate::serve;
use crate::settings::{INCARNATE, PROXY, REDIRECT};

/// The ConfigMap in the installation's namespace with what the policy compares with.
pub const SETTINGS: &str = "bluebox-settings";
/// Its key for the image of proxies.
pub const IMAGE_KEY: &str = "proxy-image";
/// Its key for the user that they run as.
pub const UID_KEY: &str = "proxy-uid";

/// Which pods: the one question, for the webhook and for the policy.
struct Which {
    name: &'static str,
    namespaces: LabelSelector,
    pods: LabelSelector,
}

fn requirement(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
    let values = Some(values.iter().map(|value| (*value).to_owned()).collect());
    LabelSelectorRequirement { key: key.to_owned(), operator: operator.to_owned(), values }
}

fn selector(requirements: Vec<LabelSelectorRequirement>) -> LabelSelector {
    LabelSelector { match_expressions: Some(requirements), match_labels: None }
}

/// Pods in labelled namespaces that don't opt out, and labelled pods elsewhere. Never those of the system and of Bluebox itself.
fn which(names: &Names) -> [Which; 2] {
    let others = || requirement(NAMESPACE_NAME, "NotIn", &[KUBE_SYSTEM, &names.namespace]);
    [
        Which {
            name: "namespaces",
            namespaces: selector(vec![others(), requirement(INJECTION, "In", &[ENABLED])]),
            pods: selector(vec![requirement(INJECTION, "NotIn", &[DISABLED])]),
        },
        Which {
            name: "pods",
            namespaces: selector(vec![others(), requirement(INJECTION, "NotIn", &[ENABLED])]),
            pods: selector(vec![requirement(INJECTION, "In", &[ENABLED])]),
        },
    ]
}

/// No pod that is exempt.
fn conditions() -> Vec<MatchCondition> {
    EXEMPTIONS.iter().map(|exemption| MatchCondition { name: format!("not-{}", exemption.name), expression: format!("!({})", exemption.cel) }).collect()
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// When to ask the webhook. With the injector away the API server goes on without it; what it then lets through, [`policy`] stops.
pub fn webhook(names: &Names) -> MutatingWebhookConfiguration {
    let one = |Which { name, namespaces, pods }: Which| MutatingWebhook {
        name: format!("{name}.injector.bluebox.dev"),
        admission_review_versions: vec!["v1".to_owned()],
        client_config: WebhookClientConfig {
            service: Some(ServiceReference {
                name: names.service.clone(),
                namespace: names.namespace.clone(),
                path: Some(serve::PATH.to_owned()),
                port: Some(443),
            }),
            ..WebhookClientConfig::default()
        },
        failure_policy: Some("Ignore".to_owned()),
        match_conditions: Some(conditions()),
        match_policy: Some("Equivalent".to_owned()),
        namespace_selector: Some(namespaces),
        object_selector: Some(pods),
        // Another webhook may add containers after this one: then it is asked again.
        reinvocation_policy: Some("IfNeeded".to_owned()),
        rules: Some(vec![RuleWithOperations {
            api_groups: Some(vec![String::new()]),
            api_versions: Some(vec!["v1".to_owned()]),
            operations: Some(vec!["CREATE".to_owned()]),
            resources: Some(vec!["pods".to_owned()]),
            scope: Some("Namespaced".to_owned()),
        }]),
        side_effects: "None".to_owned(),
        timeout_seconds: i32::try_from(TIMEOUT.as_secs()).ok(),
    };
    MutatingWebhookConfiguration { metadata: named(&names.webhook), webhooks: Some(which(names).into_iter().map(one).collect()) }
}

/// The name of the policy; those of its bindings begin with it.
pub const POLICY: &str = "bluebox-injected";
/// What the API server says of a pod that it refuses because the proxy is missing begins with this.
pub const BARE: &str = "this pod should have Bluebox's proxy and doesn't";

/// What the redirect can be told.
const REDIRECT_FLAGS: [&str; 5] = ["proxy-uid", "transparent-port", "dns-port", "exclude-ports", "exclude-networks"];

/// What the API server itself checks, so that nothing has to be up for it: a pod that should have the proxy has it.
pub fn policy() -> ValidatingAdmissionPolicy {
    let ours = format!("object.spec.initContainers.filter(c, c.name == '{PROXY}')");
    let injected = format!(
        "has(object.spec.initContainers) && {ours}.exists(c, has(c.restartPolicy) && c.restartPolicy == 'Always' && c.image == params.data['{IMAGE_KEY}'])"
    );
    let confined = format!(
        "!has(object.spec.initContainers) || object.spec.initContainers.filter(c, c.name == '{PROXY}' || c.name == '{INCARNATE}').all(c, !has(c.command) && \
         c.image == params.data['{IMAGE_KEY}'] && has(c.securityContext) && \
         has(c.securityContext.runAsUser) && string(c.securityContext.runAsUser) == params.data['{UID_KEY}'] && \
         has(c.securityContext.allowPrivilegeEscalation) && !c.securityContext.allowPrivilegeEscalation && \
         !(has(c.securityContext.privileged) && c.securityContext.privileged) && \
         !(has(c.securityContext.capabilities) && has(c.securityContext.capabilities.add) && size(c.securityContext.capabilities.add) > 0))"
    );
    // The only one with a right over the pod's network: it runs once, as what it is, with nothing of the app in its hands.
    let redirects = format!(
        "!has(object.spec.initContainers) || object.spec.initContainers.filter(c, c.name == '{REDIRECT}').all(c, !has(c.command) && !has(c.restartPolicy) && \
         !has(c.env) && !has(c.envFrom) && c.image == params.data['{IMAGE_KEY}'] && has(c.args) && size(c.args) > 1 && c.args[0] == 'redirect' && \
         ('--proxy-uid=' + params.data['{UID_KEY}']) in c.args && c.args.filter(a, a != 'redirect').all(a, {flags} || \
         a in ['--incarnation={BOX_PATH}', '--program={PROGRAM_PATH}']) && \
         (!has(c.volumeMounts) || c.volumeMounts.all(m, m.name in ['{EMPTY_VOLUME}', '{BOX_VOLUME}', '{PROGRAM_VOLUME}'])) && !has(c.volumeDevices) && has(c.securityContext) && \
         has(c.securityContext.runAsUser) && c.securityContext.runAsUser == 0 && \
         has(c.securityContext.allowPrivilegeEscalation) && !c.securityContext.allowPrivilegeEscalation && \
         has(c.securityContext.readOnlyRootFilesystem) && c.securityContext.readOnlyRootFilesystem && \
         !(has(c.securityContext.privileged) && c.securityContext.privileged) && has(c.securityContext.capabilities) && \
         has(c.securityContext.capabilities.add) && c.securityContext.capabilities.add == ['{NET_ADMIN}'] && \
         has(c.securityContext.capabilities.drop) && c.securityContext.capabilities.drop == ['ALL'])",
        flags = REDIRECT_FLAGS.map(|flag| format!("a.startsWith('--{flag}=')")).join(" || ")
    );
    let both = format!(
        "!has(object.spec.initContainers) || object.spec.initContainers.exists(c, c.name == '{REDIRECT}') == \
         object.spec.initContainers.exists(c, c.name == '{PROXY}' && has(c.args) && c.args.exists(a, a.startsWith('--transparent=')))"
    );
    let validation = |expression: String, message: String| Validation { expression, message: Some(message), ..Validation::default() };
    ValidatingAdmissionPolicy {
        metadata: named(POLICY),
        spec: Some(ValidatingAdmissionPolicySpec {
            failure_policy: Some("Fail".to_owned()),
            match_conditions: Some(conditions()),
            match_constraints: Some(MatchResources {
                resource_rules: Some(vec![NamedRuleWithOperations {
                    api_groups: Some(vec![String::new()]),
                    api_versions: Some(vec!["v1".to_owned()]),
                    operations: Some(vec!["CREATE".to_owned()]),
                    resources: Some(vec!["pods".to_owned()]),
                    ..NamedRuleWithOperations::default()
                }]),
                ..MatchResources::default()
            }),
            param_kind: Some(ParamKind { api_version: Some("v1".to_owned()), kind: Some("ConfigMap".to_owned()) }),
            validations: Some(vec![
                validation(
                    injected,
                    format!(
                        "{BARE} (an init container `{PROXY}` with this installation's image): the injector didn't answer, or a container \
                         of that name is another's. Controllers try again by themselves; the label {INJECTION}: {DISABLED} lets the pod start without a proxy"
                    ),
                ),
                validation(
                    confined,
                    format!(
                        "the container `{PROXY}` or `{INCARNATE}` runs another image or command, as another user or with more rights than Bluebox gives it"
                    ),
                ),
                validation(
                    redirects,
                    format!(
                        "the container `{REDIRECT}` runs another image or command, as another user or with other rights than Bluebox gives it ({NET_ADMIN}, and nothing else)"
                    ),
                ),
                validation(
                    both,
                    format!("a proxy to which the kernel's rules send calls needs `{REDIRECT}`, which puts them in place, and that needs such a proxy"),
                ),
            ]),
            ..ValidatingAdmissionPolicySpec::default()
        }),
        status: None,
    }
}

/// For which pods it is checked.
pub fn bindings(names: &Names) -> [ValidatingAdmissionPolicyBinding; 2] {
    which(names).map(|Which { name, namespaces, pods }| ValidatingAdmissionPolicyBinding {
        metadata: ObjectMeta { name: Some(format!("{POLICY}-{name}")), ..ObjectMeta::default() },
        spec: ValidatingAdmissionPolicyBindingSpec {
            policy_name: POLICY.to_owned(),
            validation_actions: vec!["Deny".to_owned()],
            match_resources: Some(MatchResources { namespace_selector: Some(namespaces), object_selector: Some(pods), ..MatchResources::default() }),
            param_ref: Some(ParamRef {
                name: Some(SETTINGS.to_owned()),
                namespace: Some(names.namespace.clone()),
                parameter_not_found_action: Some("Deny".to_owned()),
                selector: None,
            }),
        },
    })
}
