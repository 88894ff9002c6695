//! Where the files of a build are: the forms that `build.context` may have. Pure.
//!
//! A login in an address is kept apart from it from the first moment, so that no text shows it.

use std::fmt;

use reqwest::Url;

/// The host whose repositories are fetched as archives.
const GITHUB: &str = "github.com";
const GITHUB_ALIAS: &str = "www.github.com";
/// The branches that are tried when none is named; the last is whatever the repository calls its own.
const BRANCHES: [&str; 2] = ["main", "master"];
/// The longest names that GitHub gives, and the longest ref that is taken.
const OWNER_CHARS_MAX: usize = 39;
const REPOSITORY_CHARS_MAX: usize = 100;
const REF_CHARS_MAX: usize = 100;
/// The most of an address that is shown.
const SHOWN_CHARS_MAX: usize = 300;

/// Where the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// An archive at the first of these addresses that has one.
    Archives {
        /// Tried in this order.
        urls: Vec<Url>,
        login: Option<Login>,
        /// What is built of it, if it is not all.
        directory: Option<String>,
    },
    /// A repository that is fetched with git.
    Git {
        /// Without a login.
        url: Url,
        /// Branch, tag or commit; `None`: what the repository says.
        reference: Option<String>,
        login: Option<Login>,
        directory: Option<String>,
    },
}

/// What an address said before its host. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

/// A context that says nothing that could be fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SourceError {
    #[error(
        "build.context: {shown} is no address of files; write https://… of an archive or of a git repository (files on the submitter's machine are to be uploaded first, and logins by key are not used)"
    )]
    Scheme { shown: String },
    #[error(
        "build.context: {shown} {why}; write https://github.com/OWNER/REPOSITORY, with /tree/BRANCH, /commit/ID or #REF:DIRECTORY if it is not all of its main branch"
    )]
    GitHub { shown: String, why: &'static str },
    #[error("build.context: {shown} {why}")]
    Reference { shown: String, why: &'static str },
}

impl Source {
    /// Reads `build.context`.
    pub(super) fn parse(context: &str) -> Result<Self, SourceError> {
        let context = context.trim();
        let scheme = || SourceError::Scheme { shown: shown(context) };
        let mut url = Url::parse(context).map_err(|_| scheme())?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(scheme());
        }
        let login = take_login(&mut url);
        let is_github = matches!(url.host_str(), Some(GITHUB | GITHUB_ALIAS));
        let path = url.path().to_owned();
        // Tested first, also for archives at GitHub.
        if [".tar.gz", ".zip"].iter().any(|ending| path.ends_with(ending)) {
            url.set_fragment(None);
            let login = if is_github { login.map(Login::into_token) } else { login };
            return Ok(Self::Archives { urls: vec![url], login, directory: None });
        }
        if is_github && url.scheme() == "https" {
            return github(&url, login.map(Login::into_token));
        }
        if path.trim_end_matches('/').ends_with(".git") {
            let (reference, directory) = fragment(&mut url, context)?;
            return Ok(Self::Git { url, reference, login, directory });
        }
        url.set_fragment(None);
        Ok(Self::Archives { urls: vec![url], login, directory: None })
    }

    pub(super) fn directory(&self) -> Option<&str> {
        match self {
            Self::Archives { directory, .. } | Self::Git { directory, .. } => directory.as_deref(),
        }
    }
}

impl Login {
    /// A token stands after the colon if there is one, and is sent as the user.
    fn into_token(self) -> Self {
        Self { user: self.password.unwrap_or(self.user), password: None }
    }
}

fn take_login(url: &mut Url) -> Option<Login> {
    let plain = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (user, password) = (plain(url.username()), url.password().map(plain));
    // A URL with a host can be without a login.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    (!user.is_empty() || password.is_some()).then_some(Login { user, password })
}

/// `#REF`, `#REF:DIRECTORY`, `#:DIRECTORY`.
fn fragment(url: &mut Url, context: &str) -> Result<(Option<String>, Option<String>), SourceError> {
    let fragment =
        percent_encoding::percent_decode_str(url.fragment().unwrap_or_default()).decode_utf8_lossy().into_owned();
    url.set_fragment(None);
    let (reference, directory) = fragment.split_once(':').unwrap_or((&fragment, ""));
    if !reference.is_empty() {
        check_reference(reference).map_err(|why| SourceError::Reference { shown: shown(context), why })?;
    }
    let set = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok((set(reference), set(directory)))
}

fn github(url: &Url, login: Option<Login>) -> Result<Source, SourceError> {
    let mut url = url.clone();
    let refuse = |why| SourceError::GitHub { shown: shown(url.as_str()), why };
    let shown_before = url.to_string();
    let path = percent_encoding::percent_decode_str(url.path()).decode_utf8_lossy().into_owned();
    let mut parts = path.trim_matches('/').splitn(3, '/');
    let is_name = |text: &str, others: &str, chars_max: usize| {
        (1..=chars_max).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
            && !text.chars().all(|c| c == '.')
    };
    let owner = parts.next().filter(|owner| is_name(owner, "_-", OWNER_CHARS_MAX));
    let owner = owner.ok_or_else(|| refuse("names no owner of a repository"))?.to_owned();
    let repository = parts.next().map(|name| name.strip_suffix(".git").unwrap_or(name));
    let repository = repository.filter(|name| is_name(name, "_-.", REPOSITORY_CHARS_MAX));
    let repository = repository.ok_or_else(|| refuse("names no repository"))?.to_owned();
    let tail = parts.next().unwrap_or_default().to_owned();
    let in_path = match tail.split_once('/') {
        None if tail.is_empty() => None,
        Some(("tree" | "commit", reference)) if !reference.is_empty() => Some(reference.to_owned()),
        Some(_) | None => return Err(refuse("has an end that is not understood")),
    };
    url.set_query(None);
    let (in_fragment, directory) = fragment(&mut url, &shown_before)?;
    let reference = match (in_path, in_fragment) {
        (Some(_), Some(_)) => {
            return Err(SourceError::GitHub { shown: shown(&shown_before), why: "names two versions" });
        }
        (one, other) => one.or(other),
    };
    let archive = |version: &str| {
        let mut archive = url.clone();
        let _ = archive.set_host(Some(GITHUB));
        archive.set_path(&format!("/{owner}/{repository}/archive/{version}.tar.gz"));
        archive
    };
    let urls = match reference.as_deref() {
        Some(reference) => {
            check_reference(reference).map_err(|why| SourceError::GitHub { shown: shown(&shown_before), why })?;
            let mut urls = vec![archive(&format!("refs/heads/{reference}")), archive(reference)];
            if is_commit(reference) {
                // No branch is called so; one request less.
                urls.swap(0, 1);
            }
            urls
        }
        None => {
            BRANCHES.iter().map(|branch| archive(&format!("refs/heads/{branch}"))).chain([archive("HEAD")]).collect()
        }
    };
    Ok(Source::Archives { urls, login, directory })
}

/// Whether a ref is a full commit id, and so means the same files for ever.
pub(super) fn is_commit(reference: &str) -> bool {
    matches!(reference.len(), 40 | 64) && reference.chars().all(|c| c.is_ascii_hexdigit())
}

fn check_reference(reference: &str) -> Result<(), &'static str> {
    if reference.starts_with("${") {
        return Err("has a version that is a template nobody filled in");
    }
    if reference.len() > REF_CHARS_MAX {
        return Err("has a version with more than 100 characters");
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_/.+@".contains(c);
    if !reference.chars().all(is_plain) || reference.starts_with(['-', '/', '.']) || reference.contains("..") {
        return Err("has a version that no branch, tag or commit can have");
    }
    Ok(())
}

/// An address without what may be a secret in it: user, password, query.
pub(super) fn shown(context: &str) -> String {
    let text = match Url::parse(context) {
        Ok(mut url) if url.has_host() => {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.to_string()
        }
        // `git@host:…` is no address, and neither is much else that may hold a password before an `@`.
        Ok(_) | Err(_) => format!("{:?}", context.rsplit('@').next().unwrap_or_default()),
    };
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
