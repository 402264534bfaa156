//! `manifests/`, as it was when this program was built.

/// A file of `manifests/`: its path in there, and what is in it.
type File = (&'static str, &'static str);

macro_rules! manifests {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/", $path)))),*]
    };
}

/// All of them but the overlays, which only put these together, and the image's recipe.
const FILES: &[File] = manifests![
    "base/kustomization.yaml",
    "base/namespace.yaml",
    "base/settings.yaml",
    "base/rbac.yaml",
    "base/injector.yaml",
    "base/network.yaml",
    "base/policy.yaml",
    "base/webhook.yaml",
    "components/development/kustomization.yaml",
    "components/development/injector.yaml",
    "components/development/kafka.yaml",
    "components/production/kustomization.yaml",
    "components/production/injector.yaml",
    "components/production/network.yaml",
    "components/cert-manager/kustomization.yaml",
    "components/cert-manager/certificates.yaml",
    "components/cert-manager/injector.yaml",
    "components/cert-manager/webhook.yaml",
    "components/cert-manager/role.yaml",
    "components/cert-manager/cluster-role.yaml",
];

/// What is in a file.
pub(super) fn read(path: &str) -> Option<&'static str> {
    FILES.iter().find(|(name, _)| *name == path).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn none_is_forgotten() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
        let mut there = Vec::new();
        let components = std::fs::read_dir(root.join("components")).unwrap().map(|entry| entry.unwrap().path());
        for directory in components.chain([root.join("base")]) {
            for file in std::fs::read_dir(directory).unwrap() {
                there.push(file.unwrap().path().strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
            }
        }
        let mut here: Vec<_> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
        there.sort();
        here.sort();
        assert_eq!(here, there);
    }
}
