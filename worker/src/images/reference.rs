//! The names of images. They come from strangers and become a part of the engine's addresses: nothing but a name passes.

/// The longest name that is taken, tag and digest included: the engine's own limit is 255 for the name alone.
const BYTES_MAX: usize = 512;
/// Where images are that name no registry.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Another name of it.
const DEFAULT_REGISTRY_ALIAS: &str = "index.docker.io";
/// Whose images they are that name nobody there.
const DEFAULT_OWNER: &str = "library";
/// Which one is meant when none is said.
const DEFAULT_TAG: &str = "latest";

/// A checked name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference<'a> {
    /// Registry and repository.
    pub(super) name: &'a str,
    pub(super) tag: Option<&'a str>,
    pub(super) digest: Option<&'a str>,
}

impl<'a> Reference<'a> {
    /// Takes a name apart; `None` if it is none.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            Some(_) | None => (name, None),
        };
        let is_word = |word: &str, others: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
            word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(is_plain)
        };
        let is_name = name.split('/').enumerate().all(|(at, part)| is_word(part, if at == 0 { "._-:" } else { "._-" }));
        let is_tag = tag.is_none_or(|tag| is_word(tag, "._-"));
        let is_digest = digest.is_none_or(|digest| digest.contains(':') && is_word(digest, ":+._-"));
        (text.len() <= BYTES_MAX && is_name && is_tag && is_digest).then_some(Self { name, tag, digest })
    }

    /// What the engine is to fetch; without a tag it would fetch all of them.
    pub(super) fn version(self) -> &'a str {
        self.digest.or(self.tag).unwrap_or(DEFAULT_TAG)
    }

    /// Whether the name is expected to mean another image tomorrow: it has neither a digest nor a number in its tag.
    pub(super) fn is_floating(self) -> bool {
        self.digest.is_none() && self.tag.is_none_or(|tag| !tag.contains(|c: char| c.is_ascii_digit()))
    }

    /// One spelling for all that mean the same image: `busybox` and `docker.io/library/busybox:latest` are one.
    pub(super) fn canonical(self) -> String {
        let (registry, path) = self.parts();
        let owner = if registry == DEFAULT_REGISTRY && !path.contains('/') { DEFAULT_OWNER } else { "" };
        let slash = if owner.is_empty() { "" } else { "/" };
        // With a digest a tag says nothing.
        let sign = if self.digest.is_some() { '@' } else { ':' };
        format!("{registry}/{owner}{slash}{path}{sign}{}", self.version())
    }

    /// The registry's host, with its port.
    pub(super) fn registry(self) -> &'a str {
        self.parts().0
    }

    /// Host and path.
    fn parts(self) -> (&'a str, &'a str) {
        match self.name.split_once('/') {
            Some((DEFAULT_REGISTRY | DEFAULT_REGISTRY_ALIAS, path)) => (DEFAULT_REGISTRY, path),
            // The engine takes a capital for a host's too; another's login must not go there.
            Some((host, path))
                if host.contains(['.', ':'])
                    || host == "localhost"
                    || host.contains(|c: char| c.is_ascii_uppercase()) =>
            {
                (host, path)
            }
            Some(_) | None => (DEFAULT_REGISTRY, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (&str, &str) {
        let reference = Reference::parse(text).unwrap();
        (reference.name, reference.version())
    }

    #[test]
    fn names_are_split_where_registries_split_them() {
        assert_eq!(parts("alpine"), ("alpine", "latest"));
        assert_eq!(parts("alpine:3.19"), ("alpine", "3.19"));
        assert_eq!(parts("host:5000/a/b"), ("host:5000/a/b", "latest"));
        assert_eq!(parts("host:5000/a/b:1"), ("host:5000/a/b", "1"));
        assert_eq!(parts("a@sha256:00"), ("a", "sha256:00"));
        assert_eq!(parts("host:5000/a:1@sha256:00"), ("host:5000/a", "sha256:00"));
    }

    #[test]
    fn what_would_lead_elsewhere_in_the_engine_is_no_name() {
        let long = "a".repeat(BYTES_MAX + 1);
        let bad = [
            "",
            " ",
            "a b",
            "../containers/x",
            "a/../b",
            "a//b",
            "a/",
            "/a",
            "a?x=1",
            "a#b",
            "a%2e",
            "a:",
            "a:b c",
            "a@",
            "a@x",
            "a@sha256:../x",
            "https://github.com/a/b",
            "-a",
            "a\n",
            "ä",
            &long,
        ];
        for text in bad {
            assert_eq!(Reference::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn all_spellings_of_one_image_are_one() {
        let canonical = |text: &str| Reference::parse(text).unwrap().canonical();
        for spelling in [
            "busybox",
            "busybox:latest",
            "library/busybox",
            "docker.io/busybox",
            "docker.io/library/busybox:latest",
            "index.docker.io/busybox",
        ] {
            assert_eq!(canonical(spelling), "docker.io/library/busybox:latest", "{spelling}");
        }
        assert_eq!(canonical("me/a:1"), "docker.io/me/a:1");
        assert_eq!(canonical("host:5000/a"), "host:5000/a:latest");
        assert_eq!(canonical("a:1@sha256:00"), canonical("docker.io/library/a@sha256:00"));
        assert_eq!(canonical("ttl.sh/00ff:1d"), "ttl.sh/00ff:1d", "those that are built have one spelling");
        for other in ["busybox:1", "me/busybox", "localhost/busybox", "Docker.io/library/busybox", "busybox@sha256:00"]
        {
            assert_ne!(canonical(other), canonical("busybox"), "{other}");
        }
        // It is a fixed point, so that what was written down once is found again.
        for text in ["busybox", "me/a:1", "host:5000/a/b@sha256:00", "localhost/x"] {
            assert_eq!(canonical(&canonical(text)), canonical(text));
        }
    }

    #[test]
    fn a_tag_without_a_number_floats() {
        let floats = |text| Reference::parse(text).unwrap().is_floating();
        assert!(floats("a") && floats("a:latest") && floats("host:5000/a") && floats("a:alpine"));
        assert!(!floats("a:3") && !floats("a:v1.2") && !floats("a:latest@sha256:00") && !floats("a@sha256:00"));
    }

    #[test]
    fn the_registry_is_the_first_part_that_looks_like_a_host() {
        let registry = |text| Reference::parse(text).unwrap().registry();
        assert_eq!(registry("alpine"), "docker.io");
        assert_eq!(registry("me/alpine"), "docker.io");
        assert_eq!(registry("localhost/a"), "localhost");
        assert_eq!(registry("localhost:5000/a"), "localhost:5000");
        assert_eq!(registry("ghcr.io/me/a:1"), "ghcr.io");
        assert_eq!(registry("Host/a"), "Host");
    }
}
