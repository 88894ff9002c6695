use super::*;

fn urls(context: &str) -> Vec<String> {
    match Source::parse(context).unwrap() {
        Source::Archives { urls, .. } => urls.iter().map(Url::to_string).collect(),
        Source::Git { url, .. } => panic!("{url} is fetched with git"),
    }
}

fn refused(context: &str) -> String {
    Source::parse(context).unwrap_err().to_string()
}

#[test]
fn an_archive_is_taken_from_where_it_is() {
    for context in [
        "https://example.com/a.tar.gz",
        "http://example.com/a.zip",
        "https://example.com/f/0123?x=1",
        "https://github.com/a/b/archive/refs/tags/v1.zip",
        "https://codeload.github.com/a/b/tar.gz/main",
        "https://gitlab.com/a/b/-/archive/main/b-main.tar.gz",
    ] {
        assert_eq!(urls(context), [context]);
    }
}

#[test]
fn a_repository_at_github_is_its_main_branch_unless_it_says_another_version() {
    let main = [
        "https://github.com/a/b/archive/refs/heads/main.tar.gz",
        "https://github.com/a/b/archive/refs/heads/master.tar.gz",
        "https://github.com/a/b/archive/HEAD.tar.gz",
    ];
    for context in [
        "https://github.com/a/b",
        "https://github.com/a/b/",
        "https://github.com/a/b.git",
        "https://www.github.com/a/b",
    ] {
        assert_eq!(urls(context), main, "{context}");
    }
    let branch = [
        "https://github.com/a/b/archive/refs/heads/feature/x.tar.gz",
        "https://github.com/a/b/archive/feature/x.tar.gz",
    ];
    for context in [
        "https://github.com/a/b/tree/feature/x",
        "https://github.com/a/b#feature/x",
        "https://github.com/a/b.git#feature/x",
    ] {
        assert_eq!(urls(context), branch, "{context}");
    }
    let commit = "0123456789abcdef0123456789abcdef01234567";
    assert_eq!(
        urls(&format!("https://github.com/a/b/commit/{commit}"))[0],
        format!("https://github.com/a/b/archive/{commit}.tar.gz")
    );
    assert_eq!(
        urls("https://github.com/me/me.github.io")[0],
        "https://github.com/me/me.github.io/archive/refs/heads/main.tar.gz"
    );
}

#[test]
fn what_is_not_understood_of_a_github_address_is_refused_and_never_built_as_main() {
    for context in [
        "https://github.com/a",
        "https://github.com/a/b/blob/main/Dockerfile",
        "https://github.com/a/b/tree",
        "https://github.com/a/b/tree/x#y",
        "https://github.com/a/..",
        "https://github.com/a/b/pull/1",
    ] {
        assert!(refused(context).contains("https://github.com/OWNER"), "{context}");
    }
    assert!(refused("https://github.com/a/b/tree/${BRANCH}").contains("template"));
    for bad in ["--upload-pack=x", "a..b", "a b", "a;b"] {
        assert!(refused(&format!("https://example.com/a.git#{bad}")).contains("no branch"), "{bad}");
        assert!(refused(&format!("https://github.com/a/b#{bad}")).contains("no branch"), "{bad}");
    }
}

#[test]
fn other_repositories_are_fetched_with_git() {
    let source = Source::parse("https://me:secret@git.example/a/b.git#v1:docker/app").unwrap();
    let Source::Git { url, reference, login, directory } = source.clone() else { panic!("{source:?}") };
    assert_eq!(url.as_str(), "https://git.example/a/b.git");
    assert_eq!((reference.as_deref(), directory.as_deref()), (Some("v1"), Some("docker/app")));
    assert_eq!(login, Some(Login { user: "me".to_owned(), password: Some("secret".to_owned()) }));
    assert!(!format!("{source:?}").contains("secret"));
    let Source::Git { reference, directory, .. } = Source::parse("https://git.example/a.git").unwrap() else {
        panic!()
    };
    assert_eq!((reference, directory), (None, None));
}

#[test]
fn what_is_on_no_web_server_is_refused() {
    for context in [
        "git@github.com:a/b.git",
        "ssh://git@github.com/a/b",
        "git://a/b",
        "/etc",
        "./here",
        "",
        "file:///etc",
        "data:,x",
    ] {
        assert!(refused(context).contains("no address of files"), "{context}");
    }
}

#[test]
fn a_token_in_an_address_is_used_and_not_shown() {
    for context in [
        "https://t0ken@github.com/a/b",
        "https://me:t0ken@github.com/a/b",
        "https://x:t0ken@github.com/a/b/archive/main.zip",
    ] {
        let Source::Archives { urls, login, .. } = Source::parse(context).unwrap() else { panic!("{context}") };
        assert_eq!(login, Some(Login { user: "t0ken".to_owned(), password: None }));
        assert!(urls.iter().all(|url| !url.as_str().contains("t0ken")));
    }
    for context in [
        "https://t0ken@github.com/a",
        "ssh://me:t0ken@h/a",
        "me:t0ken@h:a",
        "https://t0ken@github.com/a/b/blob/x",
        "https://t0ken@h/a.git#a..b",
    ] {
        assert!(!refused(context).contains("t0ken"), "{context}");
    }
    assert_eq!(shown("https://a:b@h/x?sig=1#r"), "https://h/x#r");
}
