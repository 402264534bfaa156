//! As much of kustomize as the manifests need: resources, and components with further resources and patches (RFC 6902). Everything else in a kustomization is an error,
//! so that what is printed here can't silently be something else than what `kubectl apply -k` makes of the same files.

use anyhow::{Context as _, anyhow, bail};
use json_patch::Patch;
use serde::Deserialize;
use serde_json::Value;

use super::files;

/// The file that says what belongs together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    patches: Vec<Change>,
}

/// A patch of one object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    target: Target,
    path: String,
}

/// Which object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    kind: String,
    name: String,
}

/// Reads YAML as Kubernetes does: 0644 is octal.
pub(super) fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let options = serde_saphyr::options! { with_snippet: false, legacy_octal_numbers: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Puts a directory of `manifests/` on top of what there is.
pub(super) fn add(directory: &str, objects: &mut Vec<Value>) -> anyhow::Result<()> {
    let read = |file: &str| {
        let path = format!("{directory}/{file}");
        let text = files::read(&path).ok_or_else(|| anyhow!("{path}: this program was built without it"))?;
        documents(text).with_context(|| format!("{path}: it can't be read"))
    };
    let one = |file: &str| read(file)?.pop().with_context(|| format!("{directory}/{file}: it is empty"));
    let this: Kustomization = serde_json::from_value(one("kustomization.yaml")?).with_context(|| format!("{directory}/kustomization.yaml"))?;
    for file in &this.resources {
        objects.extend(read(file)?);
    }
    for Change { target, path } in &this.patches {
        let patch: Patch = serde_json::from_value(one(path)?).with_context(|| format!("{directory}/{path}: it is no JSON patch"))?;
        let mut matching = objects.iter_mut().filter(|object| super::kind(object) == target.kind && super::name(object) == target.name).peekable();
        if matching.peek().is_none() {
            bail!("{directory}/{path}: there is no {} {}", target.kind, target.name);
        }
        for object in matching {
            json_patch::patch(object, &patch).with_context(|| format!("{directory}/{path}: {} {}", target.kind, target.name))?;
        }
    }
    Ok(())
}
