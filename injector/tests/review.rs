//! The admission review: what is asked, what is answered, and what is no review.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use base64::Engine as _;
use bluebox_injector::review::{Answer, BadReview, read};
use bluebox_injector::selection::Place;
use common::{FewLimits, cases, labelled, review_of, settings};
use proptest::prelude::*;
use serde_json::{Value, json};

fn ask(review: &Value, place: &Place) -> (Value, Answer) {
    let answer = read(review.to_string().as_bytes()).unwrap().answer(place, &settings(), &FewLimits);
    (serde_json::from_slice(&answer.to_json().unwrap()).unwrap(), answer)
}

fn a_pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "cart-"}, "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 1}, {"containerPort": 2}]}]}})
}

#[test]
fn an_answer_is_the_apis() {
    let (json, answer) = ask(&review_of("shop", a_pod()), &labelled("shop"));
    assert_eq!((json["apiVersion"].as_str(), json["kind"].as_str()), (Some("admission.k8s.io/v1"), Some("AdmissionReview")));
    let response = &json["response"];
    assert_eq!((response["uid"].as_str(), response["allowed"].as_bool(), response["patchType"].as_str()), (Some("0c9a8d74"), Some(true), Some("JSONPatch")));
    assert_eq!(response["auditAnnotations"]["injection"], "injected");
    assert!(response["warnings"][0].as_str().unwrap().contains("no port is named http"), "{response}");
    let patch = base64::engine::general_purpose::STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let mut pod = a_pod();
    json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
    let added: Vec<_> = pod["spec"]["initContainers"].as_array().unwrap().iter().map(|container| &container["name"]).collect();
    assert_eq!(added, ["bluebox-redirect", "proxy"]);
    assert_eq!(answer.result, "injected");

    let (json, answer) = ask(&review_of("shop", pod), &labelled("shop"));
    assert!(json["response"]["allowed"] == true && json["response"].get("patch").is_none(), "{json}");
    assert_eq!(answer.result, "unchanged");
}

#[test]
fn a_denial_says_why() {
    let mut pod = a_pod();
    pod["metadata"]["annotations"] = json!({"bluebox.dev/port": "http"});
    let (json, answer) = ask(&review_of("shop", pod), &labelled("shop"));
    let response = &json["response"];
    assert_eq!((response["allowed"].as_bool(), response["status"]["code"].as_u64(), answer.result), (Some(false), Some(422), "denied"));
    assert!(response["status"]["message"].as_str().unwrap().contains("bluebox.dev/port"), "{response}");
}

#[test]
fn what_is_no_new_pod_passes() {
    let other = |key: &str, value: Value| {
        let mut review = review_of("shop", a_pod());
        review["request"][key] = value;
        review
    };
    for review in [
        other("operation", json!("UPDATE")),
        other("subResource", json!("ephemeralcontainers")),
        other("kind", json!({"group": "apps", "version": "v1", "kind": "Deployment"})),
        other("kind", json!({"group": "", "version": "v2", "kind": "Pod"})),
    ] {
        let (json, _) = ask(&review, &labelled("shop"));
        assert!(json["response"]["allowed"] == true && json["response"].get("patch").is_none(), "{json}");
    }
    let (json, answer) = ask(&review_of("shop", a_pod()), &Place { namespace: "shop".to_owned(), ..Place::default() });
    assert!(json["response"]["allowed"] == true && answer.result == "not-asked", "{json}");
}

#[test]
fn a_review_without_a_pod_is_denied() {
    for object in [Value::Null, json!({}), json!([1]), json!("pod"), json!({"spec": {"containers": {}}})] {
        let (json, _) = ask(&review_of("shop", object), &labelled("shop"));
        assert_eq!(json["response"]["allowed"], false, "{json}");
        assert_eq!(json["response"]["uid"], "0c9a8d74");
    }
}

#[test]
fn unknown_fields_are_no_mistake() {
    let mut review = review_of("shop", a_pod());
    review["tomorrow"] = json!({});
    review["request"]["tomorrow"] = json!([1]);
    review["request"]["oldObject"] = json!("whatever");
    assert_eq!(ask(&review, &labelled("shop")).1.result, "injected");
}

#[test]
fn what_is_no_review_is_told_so() {
    assert!(matches!(read(b""), Err(BadReview::Json(_))));
    assert!(matches!(read(b"\xff\xfe"), Err(BadReview::Json(_))));
    assert!(matches!(read(&b"[".repeat(100_000)), Err(BadReview::Json(_))));
    assert!(matches!(read(b"[]"), Err(BadReview::Version { .. })));
    assert!(matches!(read(br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}"#), Err(BadReview::Version { .. })));
    assert!(matches!(read(br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":7}"#), Err(BadReview::Request(_))));
    assert!(matches!(read(br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"x"}}"#), Err(BadReview::Request(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(2000)))]

    /// The door that strangers knock at: whatever bytes come, there is an answer or an error, and no panic.
    #[test]
    fn any_bytes_at_all(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(question) = read(&bytes) {
            question.answer(&labelled("shop"), &settings(), &FewLimits);
        }
    }

    /// A review with bytes cut out, put in, or changed.
    #[test]
    fn a_review_that_was_damaged(at in any::<proptest::sample::Index>(), length in 0_usize..40, with in proptest::collection::vec(any::<u8>(), 0..8)) {
        let mut bytes = review_of("shop", a_pod()).to_string().into_bytes();
        let at = at.index(bytes.len());
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, with);
        if let Ok(question) = read(&bytes) {
            let answer = question.answer(&labelled("shop"), &settings(), &FewLimits);
            answer.to_json().unwrap();
        }
    }

    /// A review whose pod has any JSON at any place.
    #[test]
    fn a_pod_with_anything_anywhere(
        place in proptest::sample::select(vec![
            "/metadata", "/metadata/generateName", "/metadata/labels", "/metadata/annotations", "/metadata/ownerReferences", "/spec", "/spec/containers",
            "/spec/containers/0", "/spec/containers/0/name", "/spec/containers/0/ports", "/spec/containers/0/env", "/spec/initContainers", "/spec/volumes",
        ]),
        value in proptest::sample::select(vec![
            json!(null), json!(true), json!(-1), json!(1e300), json!(""), json!("x"), json!([]), json!([null]), json!([[]]), json!([{}]), json!({}),
            json!({"name": null}), json!([{"name": "proxy"}]), json!([{"containerPort": -5}]), json!({"a": "b"}), json!({"bluebox.dev/": ""}),
        ]),
    ) {
        let mut pod = a_pod();
        for (name, empty) in [("initContainers", json!([])), ("volumes", json!([]))] {
            pod["spec"][name] = empty;
        }
        for (name, empty) in [("labels", json!({})), ("annotations", json!({})), ("ownerReferences", json!([]))] {
            pod["metadata"][name] = empty;
        }
        pod["spec"]["containers"][0]["env"] = json!([]);
        *pod.pointer_mut(place).unwrap() = value;
        let (_, answer) = ask(&review_of("shop", pod.clone()), &labelled("shop"));
        if let Some(patch) = &answer.review.response.as_ref().unwrap().patch {
            json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(patch).unwrap()).unwrap();
            serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(pod).unwrap();
        }
    }
}
