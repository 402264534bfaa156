//! The whole judgement over a pod, without any input or output: who gets a proxy, who doesn't, what is wrong.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::annotations::{self, Limits, PREFIX};
use crate::identity;
use crate::inject::{self, Injected, inject};
use crate::meshes;
use crate::mistake::Mistake;
use crate::redirect::{ENFORCE, Redirect, forbids_net_admin};
use crate::selection::{Place, Why, exempt};
use crate::settings::Settings;

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It stays as it is.
    Exempt(Why),
    /// It gets the proxy.
    Injected(Box<Injected>),
    /// It can't be made, because of these; at least one.
    Denied(Vec<Mistake>),
}

/// Decides over a pod, as it came, in a place.
pub fn decide(raw: &Value, place: &Place, settings: &Settings, limits: &dyn Limits) -> Decision {
    match judge(raw, place, settings, limits) {
        Ok(decision) => decision,
        Err(mistakes) => Decision::Denied(mistakes),
    }
}

fn judge(raw: &Value, place: &Place, settings: &Settings, limits: &dyn Limits) -> Result<Decision, Vec<Mistake>> {
    let pod: Pod = serde_json::from_value(raw.clone()).map_err(|error| {
        vec![Mistake::new(
            "the pod",
            &error.to_string(),
            "it can't be read as a pod (v1); values of annotations, labels and variables are strings: put numbers in quotes",
        )]
    })?;
    if let Some(why) = exempt(&pod, place, settings).map_err(|mistake| vec![mistake])? {
        return Ok(Decision::Exempt(why));
    }
    let Some(spec) = &pod.spec else { return Err(vec![Mistake::new("the pod", "", "it has no spec")]) };
    let asked = annotations::read(pod.metadata.annotations.as_ref().unwrap_or(&std::collections::BTreeMap::new()), limits)?;
    let redirect = Redirect::of(&asked, place, settings);
    let mut mistakes = inject::check(raw, spec, &asked, redirect, settings);
    if redirect == Redirect::Nftables {
        mistakes.extend(meshes::check(&pod, spec, place));
    }
    let identity = identity::find(&pod, spec, &asked).map_err(|more| {
        mistakes.extend(more);
        std::mem::take(&mut mistakes)
    })?;
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let mut injected = inject(raw, &pod, spec, &asked, &identity, redirect, settings)?;
    if redirect == Redirect::Nftables && forbids_net_admin(place) {
        injected
            .warnings
            .push(format!("{PREFIX}redirect: nftables needs a container with NET_ADMIN, which the namespace's Pod Security Standard ({ENFORCE}) forbids"));
    }
    Ok(Decision::Injected(Box::new(injected)))
}
