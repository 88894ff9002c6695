//! Logins to registries: those given to the worker, then those of Docker's own `config.json` and its helpers.
//!
//! The file is read for each pull, so that a `docker login` is seen at once. Nothing of a login is ever logged.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tracing::{debug, warn};

use crate::config::RegistryLogin;

/// Docker Hub's name in images, and its key in `config.json`.
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What a helper gives in place of a user when the secret is a token.
const TOKEN_USER: &str = "<token>";
/// A helper asks a keyring or a cloud's API; longer, and somebody is being asked for a password who is not there.
const HELPER: Duration = Duration::from_secs(20);
/// The largest `config.json`, and the largest answer of a helper, that are read.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// How many registries a build is given logins for: more helpers than this are not run for one build.
const REGISTRIES_MAX: usize = 32;

/// Where logins come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logins {
    given: Vec<RegistryLogin>,
    /// The folder of `config.json`.
    folder: Option<PathBuf>,
}

/// The part of `config.json` that is about logins.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Secret {
    username: String,
    secret: String,
}

impl Logins {
    pub(crate) fn new(given: Vec<RegistryLogin>, folder: Option<PathBuf>) -> Self {
        Self { given, folder }
    }

    /// The login to `host`, if there is one.
    pub(super) async fn find(&self, host: &str) -> Option<DockerCredentials> {
        let given = self.given.iter().find(|login| login.host == host);
        if let Some(RegistryLogin { user, password, .. }) = given {
            return Some(of_user(host, user, password));
        }
        find_in(&self.config_file().await?, host).await
    }

    /// All logins, by the keys that builders look for: which images a build starts from is known to the builder alone.
    pub(crate) async fn all(&self) -> HashMap<String, DockerCredentials> {
        let file = self.config_file().await.unwrap_or_default();
        let mut hosts: BTreeSet<String> = self.given.iter().map(|login| login.host.clone()).collect();
        hosts.extend(file.auths.keys().chain(file.cred_helpers.keys()).map(|key| host_of(key).to_owned()));
        let mut all = HashMap::new();
        for host in hosts.into_iter().take(REGISTRIES_MAX) {
            let given = self.given.iter().find(|login| login.host == host);
            let found = match given {
                Some(login) => Some(of_user(&host, &login.user, &login.password)),
                None => find_in(&file, &host).await,
            };
            if let Some(found) = found {
                all.insert(key_of(&host).to_owned(), found);
            }
        }
        all
    }

    async fn config_file(&self) -> Option<ConfigFile> {
        let path = self.folder.as_ref()?.join("config.json");
        match read_config(&path).await {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!("cannot read logins to registries from {}: {error}", path.display());
                None
            }
        }
    }
}

async fn read_config(path: &Path) -> std::io::Result<ConfigFile> {
    let mut bytes = Vec::new();
    tokio::fs::File::open(path).await?.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes).await?;
    // Its own words would repeat what they stumbled over.
    serde_json::from_slice(&bytes).map_err(|_| std::io::Error::other("it is not the JSON that Docker writes"))
}

/// What Docker's own file says of where logins come from.
#[derive(Debug, Default)]
pub(crate) struct Helpers {
    /// For how many registries it has logins or names programs.
    pub(crate) registries: usize,
    /// The programs that it names.
    pub(crate) programs: Vec<String>,
    /// Why it cannot be read.
    pub(crate) problem: Option<String>,
}

/// Reads Docker's own file in `folder`, and no login.
pub(crate) async fn helpers(folder: Option<&Path>) -> Helpers {
    let Some(path) = folder.map(|folder| folder.join("config.json")) else { return Helpers::default() };
    match read_config(&path).await {
        Ok(file) => {
            let registries: BTreeSet<&str> =
                file.auths.keys().chain(file.cred_helpers.keys()).map(|key| host_of(key)).collect();
            let programs: BTreeSet<String> = file
                .cred_helpers
                .values()
                .chain(file.creds_store.as_ref())
                .filter(|name| is_helper(name))
                .map(|name| format!("docker-credential-{name}"))
                .collect();
            Helpers { registries: registries.len(), programs: programs.into_iter().collect(), problem: None }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Helpers::default(),
        Err(error) => {
            let problem = format!("{} cannot be read: {error}", path.display());
            Helpers { problem: Some(problem), ..Helpers::default() }
        }
    }
}

async fn find_in(file: &ConfigFile, host: &str) -> Option<DockerCredentials> {
    let own_helper = file.cred_helpers.iter().find(|(key, _)| host_of(key) == host).map(|(_, helper)| helper);
    if let Some(helper) = own_helper.or(file.creds_store.as_ref())
        && let Some(found) = ask_helper(helper, host).await
    {
        return Some(found);
    }
    let (_, auth) = file.auths.iter().find(|(key, _)| host_of(key) == host)?;
    of_auth(host, auth)
}

fn of_auth(host: &str, auth: &Auth) -> Option<DockerCredentials> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let decoded = STANDARD.decode(&auth.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|pair| pair.split_once(':'));
    let (user, password) = pair.unwrap_or((&auth.username, &auth.password));
    let found = DockerCredentials {
        identitytoken: text(&auth.identitytoken),
        registrytoken: text(&auth.registrytoken),
        ..of_user(host, user, password.trim_end_matches('\0'))
    };
    // `docker login` with a keyring leaves empty entries.
    let is_one = found.identitytoken.is_some() || found.registrytoken.is_some() || !user.is_empty();
    is_one.then_some(found)
}

fn of_user(host: &str, user: &str, password: &str) -> DockerCredentials {
    DockerCredentials {
        username: Some(user.to_owned()),
        password: Some(password.to_owned()),
        serveraddress: Some(key_of(host).to_owned()),
        ..DockerCredentials::default()
    }
}

fn is_helper(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Runs `docker-credential-<helper> get`, as Docker does.
async fn ask_helper(helper: &str, host: &str) -> Option<DockerCredentials> {
    if !is_helper(helper) {
        return None;
    }
    match tokio::time::timeout(HELPER, run_helper(format!("docker-credential-{helper}").as_ref(), key_of(host))).await {
        Ok(Ok(Some(Secret { username, secret }))) if username == TOKEN_USER => Some(DockerCredentials {
            identitytoken: Some(secret),
            serveraddress: Some(key_of(host).to_owned()),
            ..DockerCredentials::default()
        }),
        Ok(Ok(Some(Secret { username, secret }))) => Some(of_user(host, &username, &secret)),
        Ok(Ok(None)) => {
            debug!("docker-credential-{helper} knows no login to {host}");
            None
        }
        Ok(Err(error)) => {
            warn!("cannot ask docker-credential-{helper} for the login to {host}: {error}");
            None
        }
        Err(_) => {
            warn!("docker-credential-{helper} gave no login to {host} within {} s", HELPER.as_secs());
            None
        }
    }
}

async fn run_helper(program: &OsStr, server: &str) -> std::io::Result<Option<Secret>> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input says so by how it ends.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(CONFIG_BYTES_MAX).read_to_end(&mut answer).await?;
    }
    if !child.wait().await?.success() {
        return Ok(None);
    }
    serde_json::from_slice(&answer).map(Some).map_err(|_| std::io::Error::other("its answer is not the JSON expected"))
}

/// The host that a key of `config.json` is about: some are addresses, with a scheme and a path.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or(rest) {
        "index.docker.io" | "registry-1.docker.io" => HUB,
        host => host,
    }
}

/// What a registry is called where logins to it are looked for.
fn key_of(host: &str) -> &str {
    if host == HUB { HUB_KEY } else { host }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::{Value, json};

    use super::*;

    fn logins(config: &Value) -> (tempfile::TempDir, Logins) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let logins = Logins::new(Vec::new(), Some(folder.path().to_owned()));
        (folder, logins)
    }

    fn pair(found: Option<DockerCredentials>) -> Option<(String, String)> {
        let found = found?;
        Some((found.username.unwrap_or_default(), found.password.unwrap_or_default()))
    }

    fn of(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.to_owned(), password.to_owned()))
    }

    #[tokio::test]
    async fn logins_are_found_in_dockers_file_by_host() {
        let (_folder, logins) = logins(&json!({"auths": {
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:pw:with:colons")},
            "registry.example:5000": {"username": "a", "password": "b"},
            "https://ghcr.io": {"identitytoken": "t"},
            "kept.in.a.keyring": {},
        }}));
        assert_eq!(pair(logins.find("docker.io").await), of("hub", "pw:with:colons"));
        assert_eq!(pair(logins.find("registry.example:5000").await), of("a", "b"));
        assert_eq!(logins.find("ghcr.io").await.unwrap().identitytoken.as_deref(), Some("t"));
        assert_eq!(logins.find("kept.in.a.keyring").await, None);
        assert_eq!(logins.find("elsewhere.example").await, None);
        let all = logins.all().await;
        assert_eq!(all.len(), 3);
        assert!(all.contains_key(HUB_KEY) && all.contains_key("ghcr.io"));
    }

    #[tokio::test]
    async fn a_login_given_to_the_worker_wins() {
        let (_folder, mut logins) = logins(&json!({"auths": {"r.example": {"username": "a", "password": "b"}}}));
        logins.given = vec!["r.example=c:d".parse().unwrap()];
        assert_eq!(pair(logins.find("r.example").await), of("c", "d"));
        assert_eq!(pair(logins.all().await.remove("r.example")), of("c", "d"));
    }

    #[tokio::test]
    async fn no_file_and_a_broken_file_are_no_logins() {
        assert_eq!(Logins::default().find("a").await, None);
        let (folder, logins) = logins(&json!({}));
        assert_eq!(logins.find("a").await, None);
        std::fs::write(folder.path().join("config.json"), "{").unwrap();
        assert_eq!(logins.find("a").await, None);
    }

    #[tokio::test]
    async fn a_helpers_name_is_no_path_and_no_command() {
        assert_eq!(ask_helper("../../bin/sh", "a").await, None);
        assert_eq!(ask_helper("x; true", "a").await, None);
        assert_eq!(ask_helper("", "a").await, None);
    }

    #[tokio::test]
    async fn a_helpers_answer_is_a_login() {
        let folder = tempfile::tempdir().unwrap();
        let helper = folder.path().join("docker-credential-x");
        let script = "#!/bin/sh\nserver=$(cat)\n[ \"$1 $server\" = 'get r.example' ] || exit 1\n\
                      echo '{\"ServerURL\":\"r\",\"Username\":\"u\",\"Secret\":\"s\"}'\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let secret = run_helper(helper.as_os_str(), "r.example").await.unwrap().unwrap();
        assert_eq!((secret.username.as_str(), secret.secret.as_str()), ("u", "s"));
        assert!(run_helper(helper.as_os_str(), "other.example").await.unwrap().is_none());
    }
}
