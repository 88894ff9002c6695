//! How a job's image is built, as flags say it.

use std::path::PathBuf;

use super::super::setting::{Env, UsageError, base_url, flag_only};

/// The options of a build.
#[derive(Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct BuildArgs {
    /// Have the image built from these files instead: an archive or a repository, such as https://github.com/OWNER/REPO
    #[arg(short = 'r', long, visible_alias = "context", value_name = "URL")]
    git: Option<String>,
    /// Have it built by this Dockerfile, which goes into the definition
    #[arg(long, value_name = "FILE", conflicts_with = "dockerfile_inline")]
    dockerfile: Option<PathBuf>,
    /// The same, as text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    dockerfile_inline: Option<String>,
    /// The directory in the files that is built [default: all of them]
    #[arg(long, value_name = "DIR")]
    build_context: Option<String>,
    /// Which Dockerfile in the files [default: Dockerfile]
    #[arg(long, value_name = "PATH")]
    filename: Option<String>,
    /// The stage to build
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// The platform to build for, such as linux/arm64
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// An argument of the build; may be given again and again
    #[arg(long = "build-arg", value_name = "NAME=VALUE")]
    args: Vec<String>,
}

/// How an image is built.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Build {
    /// The texts of the definition's block, by name.
    pub(crate) fields: Vec<(&'static str, String)>,
    /// A Dockerfile that is yet to be read into it.
    pub(crate) dockerfile: Option<PathBuf>,
    /// The arguments.
    pub(crate) args: Vec<String>,
}

impl BuildArgs {
    /// Whether there is any.
    pub(super) fn is_given(&self) -> bool {
        let texts =
            [&self.git, &self.dockerfile_inline, &self.build_context, &self.filename, &self.target, &self.platform];
        texts.iter().any(|text| text.is_some()) || self.dockerfile.is_some() || !self.args.is_empty()
    }

    /// The build, if there is to be one.
    pub(super) fn build(&self, env: Env<'_>) -> Result<Option<Build>, UsageError> {
        if !self.is_given() {
            return Ok(None);
        }
        let context = flag_only("--git", self.git.as_deref())
            .find(env, |text| base_url(text.split(['#', '?']).next().unwrap_or(text)).map(|_| text.to_owned()))?;
        if context.is_none() && self.dockerfile.is_none() && self.dockerfile_inline.is_none() {
            return Err(UsageError::new(
                "--git",
                "say what the image is built from: --git URL, --dockerfile FILE, or both",
            ));
        }
        let arg = |text: &str| match text.split_once('=') {
            Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
            Some(_) | None => Err("write NAME=VALUE"),
        };
        let args = self.args.iter().map(|given| flag_only("--build-arg", Some(given)).find(env, arg));
        let texts = [
            ("context", &context),
            ("dockerfile", &self.dockerfile_inline),
            ("buildContext", &self.build_context),
            ("filename", &self.filename),
            ("target", &self.target),
            ("platform", &self.platform),
        ];
        Ok(Some(Build {
            fields: texts.into_iter().filter_map(|(name, text)| Some((name, text.clone()?))).collect(),
            dockerfile: self.dockerfile.clone(),
            args: args.filter_map(Result::transpose).collect::<Result<_, _>>()?,
        }))
    }
}
