//! Where blobs are kept: a folder, or a bucket that speaks S3.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use axum::http::Uri;
use percent_encoding::percent_decode_str;

/// Where blobs are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobsUrl {
    /// A folder on this machine.
    Folder(PathBuf),
    /// A bucket of an S3 store.
    Bucket(Box<BucketUrl>),
}

/// A bucket of an S3 store, and how it is used. Whatever is not said is as Amazon has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketUrl {
    /// Its name.
    pub name: String,
    /// What the names of all objects of ours begin with, without slashes at its ends; empty for none.
    pub prefix: String,
    /// The store's address (`http://minio:9000`), in which the bucket is then the first part of the path.
    pub endpoint: Option<String>,
    /// The store's address as clients and workers reach it. Default: `endpoint`.
    pub public_endpoint: Option<String>,
    /// The store's region.
    pub region: Option<String>,
    /// Whether clients of a remote broker are sent to the bucket. Else all bytes go through the broker.
    pub redirect: bool,
    /// What the environment says about credentials.
    pub access: Access,
}

/// Variables that say who we are to the store. Shows names, never values.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Access(BTreeMap<&'static str, String>);

impl Access {
    /// The variables that are looked at, which are those of Amazon's own tools.
    pub const VARIABLES: [&str; 11] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_ROLE_SESSION_NAME",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ];

    /// Takes them from wherever `variable` finds them.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let found = Self::VARIABLES.into_iter().filter_map(|name| Some((name, variable(name)?)));
        Self(found.filter(|(_, value)| !value.is_empty()).collect())
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Whether any of them says who we are.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        self.0.keys().any(|name| !name.ends_with("_REGION"))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl BlobsUrl {
    /// The folder, when blobs are on this machine.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(path) => Some(path),
            Self::Bucket(_) => None,
        }
    }

    /// What may be shown of an address that somebody wrote: not what stands where people put passwords.
    #[must_use]
    pub fn shown(text: &str) -> String {
        let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
        let (place, query) = rest.split_once('?').map_or((rest, ""), |(place, _)| (place, "?…"));
        let place = place.rsplit_once('@').map_or(place.to_owned(), |(_, place)| format!("…@{place}"));
        format!("{scheme}://{place}{query}")
    }
}

/// Why a text does not say where to keep blobs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobsUrlError {
    /// Nothing was said.
    #[error("the blob store is empty: give a folder, a file:///… address or s3://BUCKET")]
    Empty,
    /// A store that this build cannot use.
    #[error(
        "blob stores of the kind {scheme}:// are not supported; give a folder, a file:///… address or s3://BUCKET (most stores speak S3: see docs/blobs.md)"
    )]
    Unsupported {
        /// What stands before `://`.
        scheme: String,
    },
    /// A file address with a host or with escapes that are not text.
    #[error("a file address has three slashes and an absolute path: file:///var/lib/gridsocket/blobs")]
    BadFileUrl,
    /// A user or a password in the address.
    #[error("credentials do not go into the address: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")]
    Credentials,
    /// No name that a bucket can have.
    #[error(
        "a bucket's name has 3 to 63 lower-case letters, digits, `.` and `-`: s3://my-bucket/folder?region=eu-central-1"
    )]
    BadBucket,
    /// The address of a bucket without its slashes, which would otherwise be a folder of that name.
    #[error("the address of a bucket begins with s3://, such as s3://my-bucket/folder")]
    NoSlashes,
    /// A path that objects' names cannot begin with.
    #[error("what follows the bucket's name is a path of letters, digits, `.`, `_` and `-`: s3://my-bucket/folder")]
    BadPrefix,
    /// A setting that there is none of.
    #[error("there is no setting {0:?}; there are endpoint, public_endpoint, region and redirect")]
    NoSuchSetting(String),
    /// A setting that cannot be what it is.
    #[error("{name} is {problem}")]
    BadSetting {
        /// Which.
        name: &'static str,
        /// What it should be.
        problem: &'static str,
    },
}

impl FromStr for BlobsUrl {
    type Err = BlobsUrlError;

    fn from_str(text: &str) -> Result<Self, BlobsUrlError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text {
                "" => Err(BlobsUrlError::Empty),
                _ if text.starts_with("s3:") => Err(BlobsUrlError::NoSlashes),
                _ => Ok(Self::Folder(text.into())),
            };
        };
        match scheme.to_ascii_lowercase().as_str() {
            "file" => {
                let path = percent_decode_str(rest).decode_utf8().map_err(|_| BlobsUrlError::BadFileUrl)?;
                if path.starts_with('/') {
                    Ok(Self::Folder(path.as_ref().into()))
                } else {
                    Err(BlobsUrlError::BadFileUrl)
                }
            }
            "s3" => Ok(Self::Bucket(Box::new(bucket(rest)?))),
            _ => Err(BlobsUrlError::Unsupported { scheme: scheme.to_owned() }),
        }
    }
}

fn bucket(text: &str) -> Result<BucketUrl, BlobsUrlError> {
    let (place, settings) = text.split_once('?').unwrap_or((text, ""));
    if place.contains('@') {
        return Err(BlobsUrlError::Credentials);
    }
    let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
    let mut bucket = BucketUrl::new(name)?;
    bucket.prefix = prefix.trim_end_matches('/').to_owned();
    let is_plain = |part: &str| {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        !matches!(part, "" | "." | "..") && part.bytes().all(is_name)
    };
    if !bucket.prefix.is_empty() && !bucket.prefix.split('/').all(is_plain) {
        return Err(BlobsUrlError::BadPrefix);
    }
    for setting in settings.split('&').filter(|setting| !setting.is_empty()) {
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        let value = percent_decode_str(value).decode_utf8_lossy();
        match name {
            "endpoint" => bucket.endpoint = Some(endpoint("endpoint", &value)?),
            "public_endpoint" => bucket.public_endpoint = Some(endpoint("public_endpoint", &value)?),
            "region" => bucket.region = Some(region(&value)?),
            "redirect" => bucket.redirect = truth(&value)?,
            other if ["key", "secret", "token", "password"].iter().any(|word| other.contains(word)) => {
                return Err(BlobsUrlError::Credentials);
            }
            other => return Err(BlobsUrlError::NoSuchSetting(other.to_owned())),
        }
    }
    Ok(bucket)
}

impl BucketUrl {
    /// A bucket of that name, with everything else as it is by default.
    ///
    /// # Errors
    ///
    /// [`BlobsUrlError::BadBucket`]
    pub fn new(name: &str) -> Result<Self, BlobsUrlError> {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
        let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let is_name = (3..=63).contains(&name.len())
            && name.bytes().all(is_inner)
            && is_end(name.bytes().next())
            && is_end(name.bytes().last())
            && !name.contains("..");
        if !is_name {
            return Err(BlobsUrlError::BadBucket);
        }
        Ok(Self {
            name: name.to_owned(),
            prefix: String::new(),
            endpoint: None,
            public_endpoint: None,
            region: None,
            redirect: true,
            access: Access::default(),
        })
    }

    /// Sets the store's address.
    ///
    /// # Errors
    ///
    /// [`BlobsUrlError::BadSetting`]
    pub fn set_endpoint(&mut self, text: &str) -> Result<(), BlobsUrlError> {
        self.endpoint = Some(endpoint("endpoint", text)?);
        Ok(())
    }
}

fn endpoint(name: &'static str, text: &str) -> Result<String, BlobsUrlError> {
    let bad = BlobsUrlError::BadSetting { name, problem: "the store's address, such as http://minio:9000" };
    let is_web = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    let uri: Uri = text.parse().ok().filter(is_web).ok_or_else(|| bad.clone())?;
    let authority = uri.authority().ok_or_else(|| bad.clone())?;
    if authority.as_str().contains('@') {
        return Err(BlobsUrlError::Credentials);
    }
    if uri.query().is_some() { Err(bad) } else { Ok(text.trim_end_matches('/').to_owned()) }
}

fn region(text: &str) -> Result<String, BlobsUrlError> {
    let is_name =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let problem = "the name of the store's region, such as eu-central-1";
    if is_name { Ok(text.to_owned()) } else { Err(BlobsUrlError::BadSetting { name: "region", problem }) }
}

fn truth(text: &str) -> Result<bool, BlobsUrlError> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(BlobsUrlError::BadSetting { name: "redirect", problem: "true or false" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> BucketUrl {
        match text.parse().unwrap() {
            BlobsUrl::Bucket(bucket) => *bucket,
            BlobsUrl::Folder(folder) => panic!("{}", folder.display()),
        }
    }

    fn refusal(text: &str) -> String {
        text.parse::<BlobsUrl>().unwrap_err().to_string()
    }

    #[test]
    fn blobs_go_to_a_folder_given_as_a_path_or_as_a_file_address() {
        assert_eq!("/srv/b".parse(), Ok(BlobsUrl::Folder("/srv/b".into())));
        assert_eq!("blobs".parse(), Ok(BlobsUrl::Folder("blobs".into())));
        assert_eq!("file:///srv/a%20b".parse(), Ok(BlobsUrl::Folder("/srv/a b".into())));
    }

    #[test]
    fn a_bucket_needs_no_more_than_its_name() {
        let bucket = read("s3://my-bucket");
        assert_eq!((bucket.name.as_str(), bucket.prefix.as_str(), bucket.redirect), ("my-bucket", "", true));
        assert_eq!((bucket.endpoint, bucket.public_endpoint, bucket.region), (None, None, None));
    }

    #[test]
    fn a_bucket_may_be_anywhere() {
        let text = "S3://b.1-x/some/where/?endpoint=http%3A%2F%2Fminio:9000/&public_endpoint=https://files.example&region=eu-1&redirect=false";
        let bucket = read(text);
        assert_eq!((bucket.name.as_str(), bucket.prefix.as_str(), bucket.redirect), ("b.1-x", "some/where", false));
        assert_eq!(bucket.endpoint.as_deref(), Some("http://minio:9000"));
        assert_eq!(bucket.public_endpoint.as_deref(), Some("https://files.example"));
        assert_eq!(bucket.region.as_deref(), Some("eu-1"));
    }

    #[test]
    fn what_is_wrong_with_an_address_is_named() {
        assert_eq!("".parse::<BlobsUrl>(), Err(BlobsUrlError::Empty));
        assert_eq!("file://host/b".parse::<BlobsUrl>(), Err(BlobsUrlError::BadFileUrl));
        assert_eq!("s3:bucket".parse::<BlobsUrl>(), Err(BlobsUrlError::NoSlashes));
        for kind in ["gs", "az", "gopher"] {
            assert!(refusal(&format!("{kind}://bucket")).contains(&format!("{kind}://")));
        }
        for bad in ["s3://", "s3://ab", "s3://Bucket", "s3://-ab", "s3://a..b", "s3://a_b"] {
            assert!(refusal(bad).contains("bucket's name"), "{bad}");
        }
        for bad in ["s3://bucket//a", "s3://bucket/a/../b", "s3://bucket/a%2Fb", "s3://bucket/ä"] {
            assert!(refusal(bad).contains("letters, digits"), "{bad}");
        }
        assert!(refusal("s3://bucket?endpont=http://x").contains("\"endpont\""));
        assert!(refusal("s3://bucket?endpoint=minio:9000").starts_with("endpoint is"));
        assert!(refusal("s3://bucket?public_endpoint=ftp://x").starts_with("public_endpoint is"));
        assert!(refusal("s3://bucket?region=").starts_with("region is"));
        assert!(refusal("s3://bucket?redirect=maybe").starts_with("redirect is true or false"));
    }

    #[test]
    fn a_secret_has_no_place_in_an_address_and_is_not_repeated() {
        for text in
            ["s3://KEY:hush@bucket", "s3://bucket?secret_access_key=hush", "s3://bucket?endpoint=http://u:hush@h"]
        {
            assert!(refusal(text).contains("AWS_SECRET_ACCESS_KEY"), "{text}");
            assert!(!refusal(text).contains("hush"), "{text}");
            assert!(!BlobsUrl::shown(text).contains("hush"), "{text}");
        }
        let mut bucket = read("s3://bucket");
        bucket.access = Access::read(|name| (name == "AWS_SECRET_ACCESS_KEY").then(|| "hush".to_owned()));
        assert!(bucket.access.has_credentials());
        let shown = format!("{:?}", BlobsUrl::Bucket(Box::new(bucket)));
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hush"), "{shown}");
    }
}
