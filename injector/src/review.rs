//! The admission review: what the API server asks, and what it is answered. Text in, text out, nothing else.

use std::time::Duration;

use base64::Engine as _;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use serde_json::Value;

use crate::annotations::Limits;
use crate::decide::{Decision, decide};
use crate::mistake::{Mistake, denial};
use crate::selection::Place;
use crate::settings::Settings;

/// The largest review that is read, in bytes. The API server takes no larger object than 3 MiB, and a review has at most two.
pub const MAX_REVIEW_BYTES: usize = 8 << 20;
/// How long the API server is told to wait for an answer; see [`manifests`](crate::manifests).
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take here: a little less, so that it is heard why there is none.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// The version of reviews that is understood.
const VERSION: &str = "admission.k8s.io/v1";
/// Warnings that are longer are cut off by the API server (256 bytes).
const MAX_WARNING_CHARS: usize = 200;
/// And more of them than it passes on help nobody.
const MAX_WARNINGS: usize = 10;

/// What is asked.
#[derive(Debug)]
pub struct Question {
    request: AdmissionRequest<DynamicObject>,
    /// The object as it came; null if there is none.
    object: Value,
}

/// Why something is no review. The API server is told so with a status 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReview {
    /// It is no JSON, or not all of it.
    #[error("the body is no JSON: {0}")]
    Json(String),
    /// It is something else, or of another version.
    #[error("{api_version:?} {kind:?}: expected {VERSION} \"AdmissionReview\"")]
    Version {
        /// What it says that it is.
        api_version: String,
        /// See `api_version`.
        kind: String,
    },
    /// Its request can't be read.
    #[error("the request of the AdmissionReview: {0}")]
    Request(String),
}

/// What is answered.
#[derive(Debug)]
pub struct Answer {
    /// For the API server.
    pub review: AdmissionReview<DynamicObject>,
    /// What it was: `injected`, `unchanged`, `denied`, or why the pod is exempt.
    pub result: &'static str,
    /// The same in words, for the log.
    pub said: String,
}

/// Reads a review.
///
/// # Errors
/// Why it is none.
pub fn read(body: &[u8]) -> Result<Question, BadReview> {
    let mut review: Value = serde_json::from_slice(body).map_err(|error| BadReview::Json(error.to_string()))?;
    let text = |key: &str| review.get(key).and_then(Value::as_str).unwrap_or_default().chars().take(80).collect::<String>();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if api_version != VERSION || kind != "AdmissionReview" {
        return Err(BadReview::Version { api_version, kind });
    }
    // Objects are judged as they came: whatever they are, their review can be read and answered.
    let request = review.get_mut("request").and_then(Value::as_object_mut).ok_or_else(|| BadReview::Request("there is none".to_owned()))?;
    let object = request.remove("object").unwrap_or_default();
    request.remove("oldObject");
    let review: AdmissionReview<DynamicObject> = serde_json::from_value(review).map_err(|error| BadReview::Request(error.to_string()))?;
    let request = review.try_into().map_err(|_| BadReview::Request("there is none".to_owned()))?;
    Ok(Question { request, object })
}

impl Question {
    /// The namespace that the object is to be in; empty for what is in none.
    pub fn namespace(&self) -> &str {
        self.request.namespace.as_deref().unwrap_or_default()
    }

    /// Whether it is about a new pod. Everything else passes.
    pub fn is_new_pod(&self) -> bool {
        let AdmissionRequest { kind, operation, sub_resource, .. } = &self.request;
        let pod = kind.group.is_empty() && kind.version == "v1" && kind.kind == "Pod";
        pod && *operation == Operation::Create && sub_resource.as_deref().unwrap_or_default().is_empty()
    }

    /// What the pod is called, for the log: new ones often have no name yet.
    pub fn pod(&self) -> String {
        let name = |key| self.object.pointer(key).and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name("/metadata/name").or_else(|| name("/metadata/generateName")).unwrap_or("(no name)");
        name.chars().take(253).collect()
    }

    /// Answers it.
    pub fn answer(&self, place: &Place, settings: &Settings, limits: &dyn Limits) -> Answer {
        if !self.is_new_pod() {
            return self.passed("not-a-new-pod", "only new pods get a proxy".to_owned());
        }
        match decide(&self.object, place, settings, limits) {
            Decision::Exempt(why) => self.passed(why.name(), format!("the pod gets no proxy: {why}")),
            Decision::Denied(mistakes) => self.denied(&mistakes),
            Decision::Injected(injected) if injected.patch.0.is_empty() => self.passed("unchanged", "the pod has its proxy already".to_owned()),
            Decision::Injected(injected) => {
                let mut response = match AdmissionResponse::from(&self.request).with_patch(injected.patch) {
                    Ok(response) => response,
                    Err(error) => return self.denied(&[Mistake::new("the patch", &error.to_string(), "a mistake in Bluebox; please report it")]),
                };
                let warnings: Vec<_> = injected
                    .warnings
                    .iter()
                    .take(MAX_WARNINGS)
                    .map(|w| format!("Bluebox: {}", w.chars().take(MAX_WARNING_CHARS).collect::<String>()))
                    .collect();
                response.warnings = (!warnings.is_empty()).then_some(warnings);
                let said = format!("the pod gets a proxy: it is {} and serves {:?}", injected.report.name, injected.report.serves);
                Self::as_answer(response, "injected", said)
            }
        }
    }

    fn passed(&self, result: &'static str, said: String) -> Answer {
        Self::as_answer(AdmissionResponse::from(&self.request), result, said)
    }

    fn denied(&self, mistakes: &[Mistake]) -> Answer {
        let text = denial(mistakes);
        let mut response = AdmissionResponse::from(&self.request).deny(&text);
        // What the API server then answers: the object is at fault, trying again with the same one is no use.
        response.result.code = 422;
        response.result.reason = "Invalid".to_owned();
        Self::as_answer(response, "denied", text)
    }

    fn as_answer(mut response: AdmissionResponse, result: &'static str, said: String) -> Answer {
        response.audit_annotations.insert("injection".to_owned(), result.to_owned());
        Answer { review: response.into_review(), result, said }
    }
}

impl Answer {
    /// As the API server reads it.
    ///
    /// # Errors
    /// When it can't be written; only a mistake in this program can be the reason.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut review = serde_json::to_value(&self.review)?;
        // kube writes the bytes of the patch as a list of numbers, which the API server happens to read too; what is documented is base64.
        let patch = self.review.response.as_ref().and_then(|response| response.patch.as_ref());
        if let (Some(patch), Some(place)) = (patch, review.pointer_mut("/response/patch")) {
            *place = base64::engine::general_purpose::STANDARD.encode(patch).into();
        }
        serde_json::to_vec(&review)
    }
}
