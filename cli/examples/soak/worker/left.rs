//! What is left on the engine and the machine when all jobs have ended.

use std::path::Path;
use std::time::Duration;

use super::crew::Crew;
use super::daemon::Daemon;
use crate::load::Load;
use crate::process::Process;

/// How long workers may take to clear away: a removal is tried again after seconds.
const CLEARED_WITHIN: Duration = Duration::from_secs(120);
/// How many more descriptors an idle worker may have than before its first job: connections to the engine that may be used again.
const DESCRIPTORS_MORE: usize = 10;

/// What there was before the first job.
pub(super) struct Before {
    descriptors: usize,
    mounts: usize,
}

/// What is left, and what of that must not be.
#[derive(Default)]
pub(super) struct Left {
    pub(super) said: String,
    pub(super) wrong: Vec<String>,
}

impl Before {
    pub(super) async fn look(daemon: &Daemon, steady: &Process) -> anyhow::Result<Self> {
        // So that the engine has mounted what it mounts for itself.
        daemon.docker(&["info"]).await?;
        Ok(Self { descriptors: descriptors(steady.pid()?)?, mounts: mounts(daemon.folder())?.len() })
    }
}

/// Looks, while the workers still run and have nothing to do.
pub(super) async fn look(daemon: &Daemon, crew: &Crew, before: &Before, restarts: usize) -> anyhow::Result<Left> {
    let mut left = Left::default();
    let own = ["ps", "-a", "--no-trunc", "--filter", "label=container.mtfm.io"];
    let containers = async || daemon.docker(&own).await;
    let are_gone = async || containers().await.is_ok_and(|text| text.lines().count() <= 1);
    if !Load::wait_for(CLEARED_WITHIN, are_gone).await {
        left.wrong.push(format!("containers are left:\n{}", containers().await?));
    }
    // An engine that dies in the middle of a build leaves that step's container, which nothing tells from anybody's.
    let remains = daemon.docker(&["ps", "-aq"]).await?.lines().count();
    if remains > restarts {
        left.wrong.push(format!("{remains} containers of builds are left, after {restarts} deaths of the engine"));
    }
    let steady = crew.steady.pid()?;
    let has_closed = async || descriptors(steady).is_ok_and(|count| count <= before.descriptors + DESCRIPTORS_MORE);
    if !Load::wait_for(CLEARED_WITHIN, has_closed).await {
        left.wrong.push(format!(
            "{} descriptors were open before, {} are now",
            before.descriptors,
            descriptors(steady)?
        ));
    }
    let names = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let networks = names(daemon.docker(&["network", "ls", "--format", "{{.Name}}"]).await?);
    let strange =
        |name: &&String| !["host", "none", "bridge", "metaframe-container-worker-network"].contains(&name.as_str());
    if networks.iter().any(|name| strange(&name)) || networks.len() > 4 {
        left.wrong.push(format!("networks are left: {networks:?}"));
    }
    let volumes = names(daemon.docker(&["volume", "ls", "--format", "{{.Name}}"]).await?);
    if volumes.len() != 1 || !volumes.iter().all(|name| name.starts_with("metaframe-container-worker-cache-")) {
        left.wrong.push(format!("volumes are left: {volumes:?}"));
    }
    let images = names(daemon.docker(&["image", "ls", "-a", "--format", "{{.Repository}}:{{.Tag}}"]).await?);
    let nameless = images.iter().filter(|name| name.starts_with("<none>")).count();
    let mounts = mounts(daemon.folder())?;
    if mounts.len() > before.mounts + remains {
        left.wrong.push(format!("{} mounts before, now {mounts:#?}", before.mounts));
    }
    let workers = crew.pids()?;
    let zombies = zombies(&workers)?;
    if !zombies.is_empty() {
        left.wrong.push(format!("workers have dead children: {zombies:?}"));
    }
    left.said = format!(
        "no container ({remains} of builds that the engine died at), networks {networks:?}, {} volume, {} images ({nameless} layers without a name), {} mounts ({} before), {} descriptors ({} before)",
        volumes.len(),
        images.len(),
        mounts.len(),
        before.mounts,
        descriptors(steady)?,
        before.descriptors
    );
    Ok(left)
}

/// What workers left in their folders, once they have ended: nothing of a run.
pub(super) fn folders(dir: &Path, names: &[String]) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    for name in names {
        let temporary = dir.join(format!("{name}.tmp"));
        let kept = ["j", "incoming", "unacknowledged"].map(|folder| dir.join(name).join(folder));
        for folder in std::iter::once(temporary).chain(kept) {
            let files = files_below(&folder)?;
            if !files.is_empty() {
                wrong.push(format!("{} things are left in {}, such as {}", files.len(), folder.display(), files[0]));
            }
        }
    }
    Ok(wrong)
}

/// What is there that is no folder, and folders of jobs.
fn files_below(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(files) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() && folder.ends_with("unacknowledged") {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path().display().to_string());
        }
    }
    Ok(files)
}

fn descriptors(pid: u32) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// What is mounted below the engine's folder, but for the first layers of containers that it was making when it was killed: only it
/// mounts them, and only while it makes one.
fn mounts(folder: &Path) -> anyhow::Result<Vec<String>> {
    let all = std::fs::read_to_string("/proc/self/mountinfo")?;
    let folder = folder.display().to_string();
    let counts = |line: &&str| line.contains(&folder) && !line.contains("-init/merged");
    Ok(all.lines().filter(counts).map(str::to_owned).collect())
}

/// Children of workers that ended and were not waited for.
fn zombies(workers: &[u32]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(stat) = std::fs::read_to_string(entry?.path().join("stat")) else { continue };
        let Some((_, fields)) = stat.rsplit_once(')') else { continue };
        let mut fields = fields.split_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|pid| pid.parse().ok()));
        if state == Some("Z") && parent.is_some_and(|parent| workers.contains(&parent)) {
            found.push(stat.trim().to_owned());
        }
    }
    Ok(found)
}
