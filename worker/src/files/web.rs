//! The one way to the web for what jobs name: which addresses they may lead the worker to, by which client, over which
//! redirects.
//!
//! Where jobs are kept from private networks, what is fetched for them is too: a name is judged by the addresses that it leads to
//! when the connection is made, the connection goes to one of those that were judged, and so does each redirect's. The broker's
//! own address is always reached, and what the address of one of its blobs redirects to is its word, not a job's.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use protocol::reach::{is_public, is_this_machine};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Response, Url};

use crate::config::ApiAddress;

/// Connecting takes no longer than this, or the next try has a better chance.
const CONNECT: Duration = Duration::from_secs(30);
/// How long an unused connection is kept: jobs name many hosts.
const IDLE: Duration = Duration::from_secs(30);
/// As many redirects as browsers of old followed; more is a loop.
pub(crate) const REDIRECTS_MAX: usize = 10;

/// Why there is no answer. The address is not in it: it may hold a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebError {
    /// Not of the web.
    #[error("{scheme}: is not fetched")]
    Scheme { scheme: String },
    /// No host, or a redirect to nonsense.
    #[error("it leads to what is no address")]
    NoAddress,
    /// An address that jobs may not reach.
    #[error(
        "it leads to a private address, which this worker does not fetch from for jobs; --fetch-private allow would let it"
    )]
    Private,
    /// More than [`REDIRECTS_MAX`].
    #[error("it redirects too often")]
    Redirects,
    /// The connection failed.
    #[error("it cannot be reached: {why}")]
    Unreachable { why: String },
}

impl WebError {
    /// What went wrong with a connection, without the address.
    pub(crate) fn of(error: &reqwest::Error) -> Self {
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if cause.is::<LeadsToPrivate>() {
                return Self::Private;
            }
            source = cause.source();
        }
        // The error's own text repeats the address, secrets included; what caused it does not.
        let cause = std::error::Error::source(error).map(crate::outcome::with_sources);
        Self::Unreachable { why: cause.unwrap_or_else(|| "the connection failed".to_owned()) }
    }
}

/// A user and perhaps a password.
pub(crate) type Login<'a> = (&'a str, Option<&'a str>);

/// The clients. Clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct Web {
    /// Through the proxy that the environment names, if it names one.
    outward: Client,
    /// To this machine itself, which no proxy reaches.
    inward: Client,
    /// To public addresses alone, and through no proxy, which would connect to addresses that nobody judged. `None`: all
    /// addresses may be reached.
    guarded: Option<Client>,
    /// The broker, by each of its names.
    own: Vec<Url>,
}

/// A place that a request goes to, and the client that may go there.
struct Hop<'a> {
    url: Url,
    client: &'a Client,
}

impl Web {
    /// `fetches_private`: whether jobs may name private addresses. A server that sends nothing for `silence` is gone.
    pub(crate) fn new(
        tls: &rustls::ClientConfig,
        api: &ApiAddress,
        fetches_private: bool,
        silence: Duration,
    ) -> reqwest::Result<Self> {
        let builder = || {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                // Each hop is judged here.
                .redirect(reqwest::redirect::Policy::none())
                .pool_idle_timeout(IDLE)
                .connect_timeout(CONNECT)
                .read_timeout(silence)
        };
        let guarded = || builder().no_proxy().dns_resolver(Arc::new(PublicOnly)).build();
        Ok(Self {
            outward: builder().build()?,
            inward: builder().no_proxy().build()?,
            guarded: if fetches_private { None } else { Some(guarded()?) },
            own: vec![api.url()],
        })
    }

    /// Knows the broker by another of its names, too.
    pub(crate) fn knowing(mut self, api: &ApiAddress) -> Self {
        self.own.push(api.url());
        self
    }

    /// Gets what a job named, bytes as they are, over redirects that are each judged. `more` goes to every hop, `login` to the
    /// first one's own server alone.
    pub(crate) async fn get(
        &self,
        url: &Url,
        login: Option<Login<'_>>,
        more: &HeaderMap,
    ) -> Result<Response, WebError> {
        let mut hop = self.judged(url.clone())?;
        for _ in 0..=REDIRECTS_MAX {
            // A compressed body would be hashed, or taken for an archive, as it travels.
            let mut request = hop.client.get(hop.url.clone()).headers(more.clone());
            request = request.header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some((user, password)) = login
                && hop.url.origin() == url.origin()
            {
                request = request.basic_auth(user, password);
            }
            let answer = request.send().await.map_err(|error| WebError::of(&error))?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let Some(location) = answer.headers().get(LOCATION) else { return Ok(answer) };
            let next = location.to_str().ok().and_then(|location| hop.url.join(location).ok());
            let next = next.ok_or(WebError::NoAddress)?;
            hop = if self.is_blob(&hop.url) { self.trusted(next)? } else { self.judged(next)? };
        }
        Err(WebError::Redirects)
    }

    /// Where a job's words lead, if they may.
    fn judged(&self, url: Url) -> Result<Hop<'_>, WebError> {
        let Some(guarded) = &self.guarded else { return self.trusted(url) };
        if self.own.iter().any(|own| own.origin() == url.origin()) {
            return self.trusted(url);
        }
        check_scheme(&url)?;
        let host = url.host_str().ok_or(WebError::NoAddress)?.trim_end_matches('.');
        // However it was written: the parser knows 0x7f.1, 2130706433 and [::ffff:7f00:1] for what they are. Names are
        // judged when they are looked up.
        let is_private = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => !is_public(address),
            Err(_) => is_this_machine(host),
        };
        if is_private { Err(WebError::Private) } else { Ok(Hop { client: guarded, url }) }
    }

    fn trusted(&self, url: Url) -> Result<Hop<'_>, WebError> {
        check_scheme(&url)?;
        Ok(Hop { client: self.open(&url), url })
    }

    fn open(&self, url: &Url) -> &Client {
        let host = url.host_str().unwrap_or_default();
        let is_loopback = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if is_loopback || host == "localhost" { &self.inward } else { &self.outward }
    }

    /// Whether it is one of the broker's blobs. Other paths of a broker may redirect to what a job's result names.
    fn is_blob(&self, url: &Url) -> bool {
        self.own.iter().filter(|own| own.origin() == url.origin()).any(|own| {
            let below = url.path().strip_prefix(own.path().trim_end_matches('/'));
            below.is_some_and(|path| path.starts_with("/f/"))
        })
    }

    /// The addresses of a host's name or number that jobs may be led to; all of them where private ones may be reached. For
    /// programs that make their own connections: they are told to use these.
    pub(crate) async fn addresses(&self, host: &str, port: u16) -> Result<Vec<IpAddr>, WebError> {
        let name = host.trim_matches(['[', ']']).trim_end_matches('.').to_owned();
        let found = tokio::time::timeout(CONNECT, tokio::net::lookup_host((name, port))).await;
        let found = match found {
            Ok(Ok(found)) => found.map(|address| address.ip()).collect::<Vec<_>>(),
            Ok(Err(error)) => return Err(WebError::Unreachable { why: error.to_string() }),
            Err(_) => return Err(WebError::Unreachable { why: "its name is not answered".to_owned() }),
        };
        if self.guarded.is_none() {
            return Ok(found);
        }
        public_of(found).map_err(|LeadsToPrivate| WebError::Private)
    }

    /// Whether jobs may lead the worker to private addresses.
    pub(crate) fn fetches_private(&self) -> bool {
        self.guarded.is_none()
    }
}

fn check_scheme(url: &Url) -> Result<(), WebError> {
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(()),
        "http" | "https" => Err(WebError::NoAddress),
        // It is quoted: a short one is enough to see what it was.
        other => Err(WebError::Scheme { scheme: other.chars().take(20).collect() }),
    }
}

/// All addresses that a name leads to are private.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it leads to a private address")]
struct LeadsToPrivate;

/// Of the addresses that a name leads to, those that are public; an error where only those are missing.
fn public_of(found: Vec<IpAddr>) -> Result<Vec<IpAddr>, LeadsToPrivate> {
    let led_somewhere = !found.is_empty();
    let public: Vec<IpAddr> = found.into_iter().filter(|address| is_public(*address)).collect();
    if public.is_empty() && led_somewhere { Err(LeadsToPrivate) } else { Ok(public) }
}

/// Looks names up and gives their public addresses alone.
#[derive(Clone, Copy, Debug)]
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect();
            let addrs: Addrs = Box::new(public_of(found)?.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addrs)
        })
    }
}

/// An address without what may be a secret in it (user, password, query), and not endless.
pub(crate) fn shown(url: &str) -> String {
    const CHARS_MAX: usize = 300;
    match Url::parse(url) {
        Ok(mut url) => {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.set_fragment(None);
            url.as_str().chars().take(CHARS_MAX).collect()
        }
        Err(_) => format!("{:?}", url.chars().take(CHARS_MAX).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers each path with what it is told: a redirect, or else its own name.
    async fn server(answers: Vec<(&'static str, String)>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let answer = match answers.iter().find(|(from, _)| *from == path) {
                    Some((_, to)) => format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\n"),
                    None => "HTTP/1.1 200 OK\r\n".to_owned(),
                };
                let had_login = head.to_ascii_lowercase().contains("authorization:").to_string();
                let answer =
                    format!("{answer}connection: close\r\ncontent-length: {}\r\n\r\n{had_login}", had_login.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        port
    }

    fn web(api: &str, fetches_private: bool) -> Web {
        let tls = crate::tls::client_config().unwrap();
        Web::new(&tls, &api.parse().unwrap(), fetches_private, Duration::from_secs(60)).unwrap()
    }

    async fn get(web: &Web, url: &str) -> Result<String, WebError> {
        let answer = web.get(&url.parse().unwrap(), Some(("me", Some("secret"))), &HeaderMap::new()).await?;
        Ok(answer.text().await.unwrap())
    }

    #[tokio::test]
    async fn private_addresses_are_not_reached_in_any_spelling_but_the_brokers_own_is() {
        let inside = server(Vec::new()).await;
        let api = server(vec![("/other", format!("http://127.0.0.1:{inside}/"))]).await;
        let guarded = web(&format!("http://127.0.0.1:{api}"), false);
        assert!(get(&guarded, &format!("http://127.0.0.1:{api}/q/x")).await.is_ok(), "the broker's own");
        for url in [
            format!("http://127.0.0.1:{inside}/"),
            format!("http://0x7f.1:{inside}/"),
            format!("http://2130706433:{inside}/"),
            format!("http://localhost:{inside}/"),
            format!("http://localhost.:{inside}/"),
            format!("http://a.localhost:{inside}/"),
            format!("http://[::1]:{inside}/"),
            format!("http://[::ffff:127.0.0.1]:{inside}/"),
            "http://169.254.169.254/latest/meta-data".to_owned(),
            "http://10.0.0.1/".to_owned(),
            // Only a blob's address of the broker is its word.
            format!("http://127.0.0.1:{api}/other"),
        ] {
            assert!(matches!(get(&guarded, &url).await, Err(WebError::Private)), "{url}");
        }
        let open = web(&format!("http://127.0.0.1:{api}"), true);
        assert!(get(&open, &format!("http://127.0.0.1:{api}/other")).await.is_ok());
        assert!(get(&open, &format!("http://localhost:{inside}/")).await.is_ok());
    }

    #[tokio::test]
    async fn where_a_blob_is_kept_is_the_brokers_word_and_what_that_redirects_to_is_not() {
        let inside = server(Vec::new()).await;
        let storage = server(vec![("/away", format!("http://127.0.0.1:{inside}/"))]).await;
        let to = |path: &str| format!("http://127.0.0.1:{storage}{path}");
        let api = server(vec![("/grid/f/here", to("/kept")), ("/grid/f/away", to("/away"))]).await;
        let guarded = web(&format!("http://127.0.0.1:{api}/grid"), false);
        assert!(get(&guarded, &format!("http://127.0.0.1:{api}/grid/f/here")).await.is_ok());
        let away = get(&guarded, &format!("http://127.0.0.1:{api}/grid/f/away")).await;
        assert!(matches!(away, Err(WebError::Private)), "{away:?}");
    }

    #[tokio::test]
    async fn a_login_is_given_to_the_server_that_it_is_for_and_to_no_other() {
        let other = server(Vec::new()).await;
        let first = server(vec![("/there", "/here".to_owned()), ("/away", format!("http://127.0.0.1:{other}/"))]).await;
        let open = web("http://127.0.0.1:1", true);
        assert_eq!(get(&open, &format!("http://127.0.0.1:{first}/there")).await.unwrap(), "true");
        assert_eq!(get(&open, &format!("http://127.0.0.1:{first}/away")).await.unwrap(), "false");
    }

    #[tokio::test]
    async fn only_the_web_is_fetched_and_no_circle_is_run() {
        let circle = server(vec![("/a", "/a".to_owned()), ("/f", "file:///etc/passwd".to_owned())]).await;
        let open = web("http://127.0.0.1:1", true);
        let of = |path: &str| format!("http://127.0.0.1:{circle}{path}");
        assert!(matches!(get(&open, &of("/a")).await, Err(WebError::Redirects)));
        assert!(matches!(get(&open, &of("/f")).await, Err(WebError::Scheme { .. })));
        assert!(matches!(get(&open, "ftp://h.example/").await, Err(WebError::Scheme { .. })));
    }

    #[test]
    fn a_name_leads_to_its_public_addresses_alone() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(public_of(addresses(&["127.0.0.1", "93.184.216.34"])), Ok(addresses(&["93.184.216.34"])));
        assert_eq!(public_of(addresses(&["10.0.0.1", "::1"])), Err(LeadsToPrivate));
        assert_eq!(public_of(Vec::new()), Ok(Vec::new()), "nowhere is not private");
    }

    #[test]
    fn what_is_shown_of_an_address_holds_no_secret() {
        assert_eq!(shown("https://user:pw@h.example/a?X-Signature=s#f"), "https://h.example/a");
    }
}
