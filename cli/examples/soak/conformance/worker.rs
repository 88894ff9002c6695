//! A worker as the original is one: its timers, its watchdogs, what it gathers offline.
//!
//! What it makes of the jobs that it is told of is in [`super::hands`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

use super::hands::Hands;
use super::http::Http;
use super::jobs::now;
use super::run::Event;
use super::scene::{Order, Pulse, Role, Scene, Seen, Sockets};
use super::wire::{PING, PONG, Wire, message};
use crate::random::Random;

/// The original's numbers.
const PING_EVERY: Duration = Duration::from_secs(5);
const REGISTER_EVERY: Duration = Duration::from_secs(10);
const PONG_LOOK_EVERY: Duration = Duration::from_secs(3);
const PONG_WITHIN: Duration = Duration::from_secs(10);
const FRAME_WITHIN: Duration = Duration::from_secs(30);
const STATES_LOOK_EVERY: Duration = Duration::from_secs(10);
const STATES_WITHIN: Duration = Duration::from_secs(20);
const CONNECT_WITHIN: Duration = Duration::from_secs(6);
const RETRY_MS: (u64, u64) = (1_000, 5_000);

/// How exactly it keeps time.
const TICK: Duration = Duration::from_millis(200);

/// Frames of its runs that may wait for it.
const EVENTS_MAX: usize = 256;

/// How many jobs it runs at once.
pub(super) const SLOTS: usize = 2;

pub(super) struct Worker {
    scene: Arc<Scene>,
    seen: Arc<Seen>,
    orders: mpsc::Receiver<Order>,
    events: mpsc::Receiver<Event>,
    hands: Hands,
    wire: Option<Wire>,
    pulse: Pulse,
    /// What waits for a socket.
    offline: VecDeque<String>,
    /// It stops to register by itself when it loses its first connection.
    registers: bool,
    connect_at: Instant,
    retry: Duration,
    ping_at: Instant,
    register_at: Instant,
    pong_look_at: Instant,
    states_look_at: Instant,
}

impl Worker {
    pub(super) fn new(
        scene: Arc<Scene>,
        seen: Arc<Seen>,
        http: Http,
        orders: mpsc::Receiver<Order>,
        mut random: Random,
    ) -> Self {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let hands = Hands::new(scene.clone(), seen.clone(), http, sender);
        let (start, retry) = (Instant::now(), random.millis(RETRY_MS.0, RETRY_MS.1));
        Self {
            scene,
            seen,
            orders,
            events,
            hands,
            wire: None,
            pulse: Pulse::new(),
            offline: VecDeque::new(),
            registers: true,
            connect_at: start,
            retry,
            ping_at: start,
            register_at: start,
            pong_look_at: start,
            states_look_at: start + STATES_LOOK_EVERY,
        }
    }

    /// Works until the run is over.
    pub(super) async fn run(mut self) {
        let (stop, mut ticks) = (self.scene.stop.clone(), interval(TICK));
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.pulse.cut(self.scene.sockets(Role::Worker)),
                text = hear(&mut self.wire) => match text {
                    Ok(text) => self.hear(&text).await,
                    Err(error) => self.lost(&format!("{error:#}")),
                },
                Some(event) = self.events.recv() => match event {
                    Event::Frame(frame) => self.send(frame).await,
                    Event::Ended { job, claimed, value } => {
                        self.hands.ended(&job, claimed, &value);
                    }
                },
                Some(order) = self.orders.recv() => self.order(order).await,
                _ = ticks.tick() => self.on_time().await,
            }
            self.hands.go_on();
            while let Some(frame) = self.hands.frames.pop_front() {
                self.send(frame).await;
            }
            self.seen.set_connected(self.wire.is_some());
            self.seen.set_free(self.wire.is_some() && self.hands.has_free_slot());
        }
    }

    fn sockets(&self) -> &Sockets {
        self.scene.sockets(Role::Worker)
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        if self.states_look_at <= now {
            self.states_look_at = now + STATES_LOOK_EVERY;
            if self.pulse.states.elapsed() > STATES_WITHIN {
                self.watchdog("nothing about jobs for 20 s");
            }
        }
        if self.wire.is_none() {
            if self.connect_at <= now {
                self.connect().await;
            }
            return;
        }
        if self.pong_look_at <= now {
            self.pong_look_at = now + PONG_LOOK_EVERY;
            if self.pulse.pong.elapsed() >= PONG_WITHIN {
                self.watchdog("no PONG for 10 s");
            } else if self.pulse.frame.elapsed() >= FRAME_WITHIN {
                self.watchdog("no frame for 30 s");
            }
        }
        if self.ping_at <= now {
            self.ping_at = now + PING_EVERY;
            self.ping().await;
        }
        if self.registers && self.register_at <= now {
            self.register().await;
        }
    }

    async fn connect(&mut self) {
        let path = format!("/q/{}/worker", self.seen.queue);
        match Wire::open(&self.scene.address, &path, CONNECT_WITHIN).await {
            Ok(wire) => {
                self.wire = Some(wire);
                self.sockets().opened.add(1);
                self.pulse = self.pulse.on_new_socket();
                self.ping_at = Instant::now() + PING_EVERY;
                // First what could not be said, then who says it.
                self.scene.deeds.offline_frames.add(self.offline.len() as u64);
                for frame in std::mem::take(&mut self.offline) {
                    self.send(frame).await;
                }
                self.register().await;
            }
            Err(error) => {
                self.scene.wrong.say(format!("worker {} cannot connect: {error:#}", self.seen.name));
                self.connect_at = Instant::now() + self.retry;
            }
        }
    }

    /// Says who it is, and then what it runs.
    async fn register(&mut self) {
        self.register_at = Instant::now() + REGISTER_EVERY;
        let payload = json!({ "time": now(), "version": "0.54.85", "id": self.seen.name, "cpus": SLOTS, "gpus": 0,
            "maxJobDuration": "20m" });
        self.send(json!({ "type": "WorkerRegistration", "payload": payload }).to_string()).await;
        for frame in self.hands.claims() {
            self.send(frame).await;
        }
    }

    async fn ping(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        match wire.send(PING).await {
            Ok(()) => self.pulse.pinged(self.scene.sockets(Role::Worker)),
            Err(error) => self.lost(&format!("{error:#}")),
        }
    }

    async fn send(&mut self, frame: String) {
        let Some(wire) = &mut self.wire else { return self.offline.push_back(frame) };
        if let Err(error) = wire.send(&frame).await {
            self.offline.push_back(frame);
            self.lost(&format!("{error:#}"));
        }
    }

    async fn hear(&mut self, text: &str) {
        self.pulse.heard(self.scene.sockets(Role::Worker), text);
        if let Some(id) = text.strip_prefix(PONG) {
            if let Err(error) = self.pulse.ponged(self.scene.sockets(Role::Worker)) {
                self.scene.wrong.say(format!("worker {}: {error}", self.seen.name));
            }
            if id.trim_start() != self.seen.name {
                // Frames are taken in order, so the broker knew who this is.
                self.scene.wrong.say(format!("worker {} is answered {text:?}", self.seen.name));
                self.register().await;
            }
            return;
        }
        if !text.starts_with('{') {
            return self.scene.wrong.say(format!("worker {} is told {text:.40?}", self.seen.name));
        }
        let taken = message(text).and_then(|(kind, payload)| {
            if kind == "JobStates" || kind == "JobStateUpdates" {
                self.pulse.told_jobs(self.scene.sockets(Role::Worker));
            }
            self.hands.hear(&kind, &payload)
        });
        if let Err(error) = taken {
            self.scene.wrong.say(format!("worker {}: {error:#}", self.seen.name));
        }
    }

    async fn order(&mut self, order: Order) {
        match order {
            Order::Drop(away) if self.wire.is_some() => {
                self.sockets().dropped.add(1);
                self.close();
                self.connect_at = Instant::now() + away;
            }
            Order::Drop(_) | Order::AskWhole => {}
        }
    }

    fn close(&mut self) {
        self.wire = None;
        self.registers = false;
        self.pulse.cut(self.scene.sockets(Role::Worker));
        // The first try is made at once.
        self.connect_at = Instant::now();
    }

    /// The connection ended although nobody here wanted it.
    fn lost(&mut self, why: &str) {
        self.sockets().lost.add(1);
        self.scene.wrong.say(format!("worker {} lost its connection: {why}", self.seen.name));
        self.close();
    }

    fn watchdog(&mut self, why: &str) {
        self.sockets().watchdogs.add(1);
        self.scene.wrong.say(format!("worker {} reconnects: {why}", self.seen.name));
        self.pulse.states = Instant::now();
        self.close();
    }
}

/// The next frame of a socket; of none, nothing.
pub(super) async fn hear(wire: &mut Option<Wire>) -> anyhow::Result<String> {
    match wire {
        Some(wire) => wire.next().await,
        None => std::future::pending().await,
    }
}
