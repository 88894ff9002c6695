//! Where a broker keeps its blobs: `--blobs`, its variable, or the variables that the original had.

use broker::config::{Access, BlobsUrl, BucketUrl};

use super::setting::{Env, UsageError};

const VARIABLE: &str = "GRIDSOCKET_BLOBS";
/// What the original called its bucket, and the region that it took when none was said.
const ORIGINAL: &str = "AWS_S3_BUCKET";
const ORIGINAL_REGION: &str = "us-west-2";

/// The store, when one is named. A variable that is set to nothing counts as not set.
pub(super) fn find(flag: Option<&str>, env: Env<'_>) -> Result<Option<BlobsUrl>, UsageError> {
    let variable = |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let (place, text) = match (flag, variable(VARIABLE), variable(ORIGINAL)) {
        (Some(flag), _, _) => ("--blobs", flag.to_owned()),
        (None, Some(text), _) => (VARIABLE, text),
        (None, None, Some(name)) => {
            let mut bucket =
                BucketUrl::new(&name).map_err(|problem| UsageError::new(ORIGINAL, format!("{name:?}: {problem}")))?;
            // The region of the environment, if it names one, is read with the credentials.
            let has_region = variable("AWS_REGION").or(variable("AWS_DEFAULT_REGION")).is_some();
            bucket.region = (!has_region).then(|| ORIGINAL_REGION.to_owned());
            return complete(bucket, &variable).map(Some);
        }
        (None, None, None) => return Ok(None),
    };
    // What people put into addresses by mistake is not shown again.
    let refused = |problem| UsageError::new(place, format!("{:?}: {problem}", BlobsUrl::shown(&text)));
    match text.parse::<BlobsUrl>().map_err(refused)? {
        BlobsUrl::Bucket(bucket) => complete(*bucket, &variable).map(Some),
        folder @ BlobsUrl::Folder(_) => Ok(Some(folder)),
    }
}

/// Adds what the environment says.
fn complete(mut bucket: BucketUrl, variable: &dyn Fn(&str) -> Option<String>) -> Result<BlobsUrl, UsageError> {
    if bucket.endpoint.is_none() {
        let names = ["AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
        if let Some((name, text)) = names.into_iter().find_map(|name| Some((name, variable(name)?))) {
            bucket.set_endpoint(&text).map_err(|problem| UsageError::new(name, problem.to_string()))?;
        }
    }
    bucket.access = Access::read(variable);
    Ok(BlobsUrl::Bucket(Box::new(bucket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(flag: Option<&str>, env: &[(&str, &str)]) -> Result<Option<BlobsUrl>, UsageError> {
        find(flag, &|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn bucket(flag: Option<&str>, env: &[(&str, &str)]) -> BucketUrl {
        match found(flag, env).unwrap() {
            Some(BlobsUrl::Bucket(bucket)) => *bucket,
            other => panic!("{other:?}"),
        }
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "hush")];

    #[test]
    fn nothing_said_is_no_store() {
        assert_eq!(found(None, &[]), Ok(None));
        assert_eq!(found(None, &KEYS), Ok(None), "credentials alone name no bucket");
        assert_eq!(found(None, &[("GRIDSOCKET_BLOBS", " "), ("AWS_S3_BUCKET", "")]), Ok(None));
    }

    #[test]
    fn the_originals_variables_name_a_bucket_when_nothing_else_does() {
        let env = [("AWS_S3_BUCKET", "old-bucket"), ("AWS_ENDPOINT", "http://minio:9000/"), KEYS[0], KEYS[1]];
        let old = bucket(None, &env);
        assert_eq!((old.name.as_str(), old.prefix.as_str(), old.redirect), ("old-bucket", "", true));
        assert_eq!(old.endpoint.as_deref(), Some("http://minio:9000"));
        assert_eq!(old.region.as_deref(), Some("us-west-2"));
        assert!(old.access.has_credentials());
        assert_eq!(bucket(None, &[("AWS_S3_BUCKET", "old-bucket"), ("AWS_REGION", "eu-1")]).region, None);
        assert_eq!(bucket(Some("s3://new-bucket"), &env).name, "new-bucket");
        let folder = found(None, &[("GRIDSOCKET_BLOBS", "/b"), ("AWS_S3_BUCKET", "old-bucket")]);
        assert_eq!(folder, Ok(Some(BlobsUrl::Folder("/b".into()))));
    }

    #[test]
    fn an_address_wins_over_the_environment() {
        let env = [("AWS_ENDPOINT_URL", "http://other:1")];
        assert_eq!(bucket(Some("s3://bucket"), &env).endpoint.as_deref(), Some("http://other:1"));
        let said = bucket(Some("s3://bucket?endpoint=http://this:1"), &env);
        assert_eq!(said.endpoint.as_deref(), Some("http://this:1"));
    }

    #[test]
    fn a_refusal_names_its_place_and_no_secret() {
        let refused = found(Some("s3://id:hush@bucket"), &[]).unwrap_err();
        assert_eq!(refused.place, "--blobs");
        assert!(!refused.to_string().contains("hush"), "{refused}");
        let refused = found(None, &[("GRIDSOCKET_BLOBS", "s3://bucket?secret=hush")]).unwrap_err();
        assert_eq!(refused.place, "GRIDSOCKET_BLOBS");
        assert!(!refused.to_string().contains("hush"), "{refused}");
        assert_eq!(found(None, &[("AWS_S3_BUCKET", "No")]).unwrap_err().place, "AWS_S3_BUCKET");
        let env = [("AWS_S3_BUCKET", "bucket"), ("AWS_ENDPOINT", "minio:9000")];
        assert_eq!(found(None, &env).unwrap_err().place, "AWS_ENDPOINT");
        let shown = format!("{:?}", bucket(Some("s3://bucket"), &KEYS));
        assert!(!shown.contains("hush"), "{shown}");
    }
}
