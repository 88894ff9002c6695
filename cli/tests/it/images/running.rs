//! Workers for a broker elsewhere, and that broker.

use super::support::{Site, docker};

/// Reads an input, writes an output, says something: all that goes through folders that the Engine must see.
const COMMAND: &str = "sh -c 'cat /inputs/in.txt > /outputs/out.txt; echo said'";

/// A job with a file in and a file out.
async fn runs_a_job(site: &Site, api: &str, queue: &str) {
    let (input, out) = (site.data.path().join("in.txt"), site.data.path().join("out"));
    std::fs::write(&input, "through and through").unwrap();
    let options = ["--file", input.to_str().unwrap(), "--output-dir", out.to_str().unwrap()];
    let said = site.job(api, queue, &options, COMMAND).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "said\n"), "{said:?}");
    assert_eq!(std::fs::read_to_string(out.join("out.txt")).unwrap(), "through and through");
}

#[tokio::test]
async fn the_documented_command_works_with_only_the_images_name_changed() {
    let Some(site) = Site::find() else { return };
    let api = site.broker("broker", &[]).await;
    let address = format!("METAPAGE_IO_WORKER_API_ADDRESS={}", site.broker_inside("broker"));
    let data = format!("--data-directory={}", site.folder("worker"));
    let words = ["run", "--max-job-duration=20m", &data, "--cpus=2", &site.queue];
    site.worker("worker", &["--rm", "-e", &address], &words);
    runs_a_job(&site, &api, &site.queue).await;
    site.until_no_jobs().await;
}

#[tokio::test]
async fn the_oldest_command_without_run_works() {
    let Some(site) = Site::find() else { return };
    let api = site.broker("broker", &[]).await;
    let address = format!("METAPAGE_IO_WORKER_API_ADDRESS={}", site.broker_inside("broker"));
    let data = format!("METAPAGE_IO_WORKER_DATA_DIRECTORY={}", site.folder("worker"));
    let queue = format!("--queue={}", site.queue);
    let before = ["--restart", "unless-stopped", "-ti", "-e", &address, "-e", &data];
    site.worker("worker", &before, &["--cpus=2", &queue, "--gpus=true"]);
    runs_a_job(&site, &api, &site.queue).await;
}

#[tokio::test]
async fn variables_alone_make_a_worker() {
    let Some(site) = Site::find() else { return };
    let api = site.broker("broker", &[]).await;
    let (data, id) = (site.folder("worker"), site.container("id"));
    let inside = site.broker_inside("broker");
    // As one that was killed while it looked whether the Engine sees its files leaves it.
    let label = format!("container.mtfm.io/shared={id}");
    let left = site.docker_create("left", &["--label", &label, &site.job_image, "none"]);
    let variables = [
        ("QUEUE", site.queue.as_str()),
        ("CPUS", "3"),
        ("GPUS", "0"),
        ("MODE", "remote"),
        ("API_ADDRESS", &inside),
        ("DATA_DIRECTORY", &data),
        ("JOB_MAX_DURATION", "20m"),
        ("ID", &id),
        ("DEBUG", "true"),
        // As compose files pass on what they do not have.
        ("TAGS", ""),
    ];
    let variables = variables.map(|(name, value)| format!("METAPAGE_IO_WORKER_{name}={value}"));
    let before: Vec<&str> = variables.iter().flat_map(|variable| ["-e", variable]).collect();
    site.worker("worker", &before, &["run"]);
    let said = site.job(&api, &site.queue, &[], "echo said").await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "said\n"), "{said:?}");
    assert!(said.err.contains(&id), "{said:?}");
    assert_ne!(docker(&["inspect", &left]).code, Some(0), "what the earlier one left is gone");
    assert!(site.said("worker").out.contains("3 jobs at a time"), "{:?}", site.said("worker"));
}

#[tokio::test]
async fn a_data_directory_that_the_engine_does_not_see_is_refused_with_the_way_out() {
    let Some(site) = Site::find() else { return };
    let socket = site.socket_mount();
    let refused = |name: &str, mount: &str, data: &str| {
        let words =
            ["--rm", "-v", &socket, "-v", mount, &site.worker_image, "run", "-d", data, "-a", "http://x:1", "q"];
        let said = site.docker_run(name, &words);
        assert_eq!(said.code, Some(1), "{said:?}");
        for hint in ["does not see the data directory", data, "-v /tmp:/tmp", "--data-directory"] {
            assert!(said.err.contains(hint), "{hint}: {said:?}");
        }
        said
    };
    // In a volume, as the original's compose example has it; its folder is nowhere on the Engine's machine.
    let volume = format!("{}:/nowhere-{}", site.container("volume"), site.queue);
    let nowhere = volume.split_once(':').unwrap().1;
    let said = refused("volume", &volume, nowhere);
    assert!(said.err.contains("nothing under that path"), "{said:?}");
    assert!(!std::path::Path::new(nowhere).exists(), "nothing was made there");
    // Under the name of another folder.
    std::fs::create_dir_all(site.data.path().join("there/remote")).unwrap();
    std::fs::create_dir(site.data.path().join("here")).unwrap();
    let mount = format!("{}:{}", site.folder("here"), site.folder("there"));
    let said = refused("other", &mount, &site.folder("there"));
    assert!(said.err.contains("another folder"), "{said:?}");
    let left = docker(&["ps", "-aq", "--filter", "label=container.mtfm.io/shared", "--filter", "status=created"]);
    let of_this_test = left.out.split_whitespace().filter(|container| {
        let format = "{{range .Mounts}}{{.Source}}{{end}}";
        docker(&["inspect", "--format", format, container]).out.contains(site.data.path().to_str().unwrap())
    });
    assert_eq!(of_this_test.count(), 0);
}

#[tokio::test]
async fn a_worker_in_a_new_container_takes_over_what_the_old_one_ran() {
    let Some(site) = Site::find() else { return };
    let api = site.broker("broker", &[]).await;
    let (address, data) = (site.broker_inside("broker"), site.folder("worker"));
    let words = ["run", "-d", &data, "-a", &address, &site.queue];
    site.worker("first", &[], &words);
    let command = "sh -c 'echo begun; while [ ! -e /outputs/go ]; do sleep 0.1; done; echo done'";
    let waiting = site.job(&api, &site.queue, &[], command);
    let replacing = async {
        let job = loop {
            let found = site.jobs(&site.queue, "{{.ID}} {{.State}}").out;
            match found.trim().strip_suffix(" running") {
                Some(job) => break job.to_owned(),
                None => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        };
        assert_eq!(docker(&["rm", "-f", &site.container("first")]).code, Some(0));
        site.worker("worker", &[], &words);
        let touched = docker(&["exec", &job, "sh", "-c", "echo x > /outputs/go"]);
        assert_eq!(touched.code, Some(0), "{touched:?}");
    };
    let (said, ()) = tokio::join!(waiting, replacing);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "begun\ndone\n"), "{said:?}");
    assert!(site.said("worker").err.contains("adopts run 1"), "{:?}", site.said("worker"));
}

#[tokio::test]
async fn the_brokers_image_keeps_its_data_in_a_volume_and_is_nobody() {
    let Some(site) = Site::find() else { return };
    let volume = format!("{}:/data", site.container("volume"));
    let api = site.broker("first", &["-v", &volume, "--health-interval", "1s"]).await;
    let submit = ["job", "add", &site.queue, "--api", &api, "-c", "kept"];
    let job = crate::run::run(&submit).await.out.trim().to_owned();
    site.until("first", "{{.State.Health.Status}}", "healthy").await;
    let first = site.container("first");
    assert_eq!(docker(&["exec", &first, "/gridsocket", "healthcheck", "127.0.0.1:9"]).code, Some(1));
    let user = docker(&["inspect", "--format", "{{.Config.User}}", &first]).out;
    assert_eq!(user.trim(), "65532:65532");
    assert_eq!(docker(&["stop", "-t", "60", &first]).code, Some(0));
    assert_eq!(docker(&["inspect", "--format", "{{.State.ExitCode}}", &first]).out.trim(), "0");

    let api = site.broker("second", &["-v", &volume, "--read-only", "--cap-drop", "ALL"]).await;
    let listed = crate::run::run(&["job", "ls", &site.queue, "--api", &api]).await;
    assert!(!job.is_empty() && listed.out.contains(&job[..8]), "{job}: {listed:?}");
}

#[tokio::test]
async fn an_image_holds_one_program_which_says_what_it_can_do() {
    let Some(site) = Site::find() else { return };
    let said = site.docker_run("help", &["--rm", &site.worker_image]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("gridsocket run"), "{said:?}");
    let said = site.docker_run("version", &["--rm", &site.broker_image, "--version"]);
    assert_eq!(said.out.trim(), concat!("gridsocket ", env!("CARGO_PKG_VERSION")));
    let shell = site.docker_run("shell", &["--rm", "--entrypoint", "sh", &site.worker_image]);
    assert_eq!(shell.code, Some(127), "{shell:?}");
}
