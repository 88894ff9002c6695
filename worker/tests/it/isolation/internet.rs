//! The network from which nothing but the internet can be reached, tried out in a world of its own: three network namespaces, one
//! with an Engine and a worker, one that has all the addresses there are to reach, and one that is somewhere else.
//!
//! Nobody moves into another namespace while running, so that the test's program is started again in each, and told its part.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use bollard::models::{HostConfig, NetworkCreateRequest};
use bollard::query_parameters::RemoveContainerOptionsBuilder;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use worker::WorkerError;
use worker::config::INTERNET_ONLY;

use super::said;
use crate::support::own_engine::{How, OwnEngine};
use crate::support::peer::until;
use crate::support::{Site, TestEngine};

const TEST: &str = "isolation::internet::jobs_reach_the_internet_and_nothing_else";
/// Which part is played.
const PART: &str = "GRIDSOCKET_TEST_PART";
/// What the namespaces' names begin with.
const WORLD: &str = "GRIDSOCKET_TEST_WORLD";

/// The workers' bridge.
const NETWORK: &str = "metaframe-container-worker-network";
/// The last of what is refused.
const PUBLIC_END: &str = "255.255.255.255/32";

const PUBLIC: &str = "8.8.8.8";
const RESOLVER: &str = "10.9.9.53";
const PRIVATE: [&str; 6] =
    ["10.9.9.9", "192.168.77.7", "172.31.1.1", "169.254.169.254", "100.100.100.200", "168.63.129.16"];
/// The Engine's machine, as the world sees it.
const MACHINE: &str = "198.18.0.1";
/// The world's end of the line.
const NEIGHBOUR: &str = "198.18.0.2";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_reach_the_internet_and_nothing_else() {
    match std::env::var(PART).as_deref() {
        Ok("world") => answer_all().await,
        Ok("machine") => machine().await,
        Ok("elsewhere") => elsewhere().await,
        _ => stage().await,
    }
}

/// Builds the world, and is the only part that a test run starts.
async fn stage() {
    if TestEngine::find().await.is_none() {
        return;
    }
    let name = format!("gs{}", std::process::id());
    let Some(world) = World::make(&name) else {
        println!("skipped: no network namespaces can be made here, or there is no iptables");
        return;
    };
    let folder = tempfile::TempDir::new().unwrap();
    let resolv = folder.path().join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {RESOLVER}\n")).unwrap();
    let _listening = Ended(world.part("world", "world", None).spawn().unwrap());
    let mut machine = world.part("machine", "machine", Some(&resolv)).spawn().unwrap();
    let mut ended = None;
    until("the worker's part is played", async || {
        ended = machine.try_wait().unwrap();
        ended.is_some()
    })
    .await;
    assert!(ended.unwrap().success(), "its words are above");
}

struct World {
    name: String,
}

impl World {
    fn make(name: &str) -> Option<Self> {
        let world = Self { name: name.to_owned() };
        let is_done = |line: &str| run(&line.replace('@', name));
        let mut lines = vec![
            "ip netns add @machine".to_owned(),
            "ip netns add @world".to_owned(),
            "ip netns add @elsewhere".to_owned(),
            "ip netns exec @machine iptables -w -S".to_owned(),
            "ip -n @elsewhere link set lo up".to_owned(),
            "ip -n @machine link set lo up".to_owned(),
            "ip -n @world link set lo up".to_owned(),
            "ip link add eth0 netns @machine type veth peer name eth0 netns @world".to_owned(),
            format!("ip -n @machine addr add {MACHINE}/30 dev eth0"),
            format!("ip -n @world addr add {NEIGHBOUR}/30 dev eth0"),
            "ip -n @machine link set eth0 up".to_owned(),
            "ip -n @world link set eth0 up".to_owned(),
            format!("ip -n @machine route add default via {NEIGHBOUR}"),
            format!("ip -n @world route add default via {MACHINE}"),
        ];
        lines.extend(
            [PUBLIC, RESOLVER].iter().chain(&PRIVATE).map(|at| format!("ip -n @world addr add {at}/32 dev lo")),
        );
        lines.iter().all(|line| is_done(line)).then_some(world)
    }

    /// This program, in one of the namespaces.
    fn part(&self, part: &str, place: &str, resolv: Option<&Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}{place}", self.name));
        if let Some(resolv) = resolv {
            // Its mounts are its own.
            let bind = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
            command.args(["unshare", "--mount", "sh", "-c", bind]).arg(resolv);
        }
        command.arg(std::env::current_exe().unwrap()).args([TEST, "--exact", "--nocapture"]);
        command.env(PART, part).env(WORLD, &self.name).stdin(Stdio::null());
        command
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What is played in one of them alone has none of its own.
        if std::env::var_os(PART).is_none() {
            for place in ["machine", "world", "elsewhere"] {
                run(&format!("ip netns del {}{place}", self.name));
            }
        }
    }
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(line: &str) -> bool {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    let command = command.args(words).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Answers on all addresses, on the ports of the web and of name servers.
async fn answer_all() {
    let serve = async |port: u16| {
        let listener = TcpListener::bind(("0.0.0.0", port)).await.unwrap();
        loop {
            if let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"hello\n").await;
            }
        }
    };
    tokio::join!(serve(80), serve(53));
}

/// Tells which of the addresses answer.
fn knock() -> String {
    let addresses: Vec<String> = [PUBLIC, MACHINE, NEIGHBOUR, "$gateway"]
        .iter()
        .chain(&PRIVATE)
        .map(|at| format!("{at}:80"))
        .chain([format!("{RESOLVER}:53"), format!("{RESOLVER}:80"), format!("{PUBLIC}:53"), "10.9.9.9:53".to_owned()])
        .collect();
    format!(
        "gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); for at in {}; do \
         [ \"$(nc -w 5 ${{at%:*}} ${{at#*:}} < /dev/null 2>/dev/null)\" = hello ] && echo ${{at#$gateway}}; done; \
         grep -v ' lo$' /proc/net/if_inet6; true",
        addresses.join(" ")
    )
}

/// Where the Engine and the worker are.
async fn machine() {
    let serve = tokio::spawn(answer_all());
    let mut site = Site::new().await.unwrap();
    let own = OwnEngine::start(How { has_bridges: true, ..How::default() }).await.expect("an Engine starts here");
    site.engine = own.client().await;

    // A network of the workers' name that is not as theirs, as somebody may have made it, is not taken for it.
    let made = |name: &str| NetworkCreateRequest { name: name.to_owned(), ..Default::default() };
    site.engine.docker.create_network(made(NETWORK)).await.unwrap();
    let body = bollard::models::ContainerCreateBody {
        image: Some(crate::support::engine::IMAGE.to_owned()),
        cmd: Some(vec!["sleep".to_owned(), "300".to_owned()]),
        host_config: Some(HostConfig { network_mode: Some(NETWORK.to_owned()), ..Default::default() }),
        ..Default::default()
    };
    let theirs = site.engine.docker.create_container(None, body).await.unwrap().id;
    site.engine.docker.start_container(&theirs, None).await.unwrap();
    let refused = site.start_with(|config| config.network = None).ended().await;
    let Err(WorkerError::Network { why }) = refused else { panic!("{refused:?}") };
    assert!(why.contains(NETWORK) && why.contains("docker network rm"), "{why}");
    let force = RemoveContainerOptionsBuilder::default().force(true).build();
    site.engine.docker.remove_container(&theirs, Some(force)).await.unwrap();

    // All of it answers where nothing is in the way: otherwise the rest would prove nothing.
    let (worker, mut line) = site.started_with(|config| config.network = None).await;
    let options = site.engine.docker.inspect_network(NETWORK, None).await.unwrap().options.unwrap();
    assert_eq!(options["com.docker.network.bridge.enable_icc"], "false", "nothing was on it, so it was made anew");
    let open = said(&mut line, &knock()).await;
    let expected = [PUBLIC, MACHINE, NEIGHBOUR, ""].iter().chain(&PRIVATE).map(|at| format!("{at}:80\n"));
    let expected: String = expected.collect::<String>() + "10.9.9.53:53\n10.9.9.53:80\n8.8.8.8:53\n10.9.9.9:53\n";
    assert_eq!(open, expected);
    worker.stop(worker::ShutdownMode::Kill).await;
    drop(line);

    let internet = |config: &mut worker::Config| config.network = Some(INTERNET_ONLY.to_owned());
    let (worker, mut line) = site.started_with(internet).await;
    let reached = format!("{PUBLIC}:80\n{RESOLVER}:53\n{PUBLIC}:53\n");
    assert_eq!(said(&mut line, &knock()).await, reached);
    // Others forget the rules: they are there again before the next job.
    for forgotten in ["-F GRIDSOCKET-INTERNET", "-F INPUT", "-F DOCKER-USER"] {
        assert!(run(&format!("iptables -w {forgotten}")), "{forgotten}");
        assert_eq!(said(&mut line, &format!("{}; : {forgotten}", knock())).await, reached, "{forgotten}");
    }

    // A container that is adopted is kept in as before, although the worker was told of another network since, and although
    // the rules are forgotten while it runs and nothing else is started.
    let waits = format!("echo up; while [ ! -e /outputs/go ]; do sleep 0.1; done; {}", knock());
    let left = line.grant(crate::support::job(json!({ "command": ["sh", "-c", waits] }))).await;
    line.until(|line| line.logs.text(left, false) == "up\n").await;
    assert_eq!(worker.stop(worker::ShutdownMode::Leave).await.left_running, 1);
    let mut logs = line.logs;
    let flush = "iptables -w -F GRIDSOCKET-INTERNET";
    assert!(run(flush));
    let stands = async || {
        run(&format!("iptables -w -C GRIDSOCKET-INTERNET -d {PUBLIC_END} -j REJECT --reject-with tcp-reset -p tcp"))
    };
    let (worker, mut line) = site.started_with(|config| config.network = None).await;
    assert_eq!(line.holds(), [left]);
    until("the rules stand again", stands).await;
    assert!(run(flush));
    until("the rules stand again, though nothing was started", stands).await;
    let dir = std::fs::read_dir(site.data.path().join("remote/j").join(left.job.to_string())).unwrap().next().unwrap();
    std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    let (_, told) = line.end(left).await;
    logs.merge(line.logs);
    assert_eq!(logs.text(left, false), format!("up\n{reached}"), "{told}");
    worker.stop(worker::ShutdownMode::Leave).await;
    let (_worker, mut line) = site.started_with(internet).await;

    let world = World { name: std::env::var(WORLD).unwrap() };
    let mut elsewhere = world.part("elsewhere", "elsewhere", None);
    assert!(elsewhere.env("DOCKER_HOST", own.host()).status().unwrap().success());
    // Jobs that cannot be kept in are not run.
    assert!(run("iptables -w -F DOCKER-USER") && run("ip link set eth0 down"));
    let devices = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    let bridge =
        devices.lines().find_map(|line| Some(line.split_once(':')?.0.trim()).filter(|name| name.starts_with("gsi")));
    let bridge = bridge.unwrap();
    assert!(run(&format!("ip link set {bridge} down")) && run(&format!("ip link set {bridge} name other")));
    let run = line.grant(crate::support::job(json!({ "command": "echo ran" }))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, protocol::event::RunOutcome::Error, "{told}");
    assert!(told["result"]["error"].as_str().is_some_and(|text| text.contains("internet")), "{told}");
    serve.abort();
}

/// A worker that reaches the Engine, but is not where its bridges are.
async fn elsewhere() {
    let site = Site::new().await.unwrap();
    let worker = site.start_with(|config| config.network = Some(INTERNET_ONLY.to_owned()));
    let refused = worker.ended().await;
    let Err(WorkerError::Egress { why }) = refused else { panic!("{refused:?}") };
    assert!(why.contains("another network namespace"), "{why}");
}
