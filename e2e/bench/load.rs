//! Callers: one, many at once, or at a given rate.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::http::{Connection, Target};
use crate::numbers::Times;

/// One call after the other.
pub(crate) async fn sequential(connection: &mut Connection, target: &Target, calls: u32) -> anyhow::Result<(Times, Duration)> {
    let mut times = Times::default();
    let began = Instant::now();
    for _ in 0..calls {
        let sent = Instant::now();
        connection.call(target).await?;
        times.add(sent.elapsed());
    }
    Ok((times, began.elapsed()))
}

/// Callers that each call again as soon as they are answered.
pub(crate) struct Callers {
    connections: Vec<Connection>,
}

impl Callers {
    /// So many, connected.
    pub(crate) async fn open(target: &Target, count: usize) -> anyhow::Result<Self> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(Connection::open(target.at).await?);
        }
        Ok(Self { connections })
    }

    /// Calls for so long. Every hundredth call goes to `slow` instead, if there is one, and does not count.
    pub(crate) async fn call(&mut self, target: &Target, slow: Option<&Target>, time: Duration) -> anyhow::Result<(Times, Duration)> {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for (number, mut connection) in self.connections.drain(..).enumerate() {
            let (target, slow) = (target.clone(), slow.cloned());
            tasks.spawn(async move {
                let mut times = Times::default();
                // Not all of them at the same time.
                let mut until_slow = number % 100;
                while began.elapsed() < time {
                    if let Some(slow) = slow.as_ref().filter(|_| until_slow == 0) {
                        connection.call(slow).await?;
                        until_slow = 100;
                    } else {
                        let sent = Instant::now();
                        connection.call(&target).await?;
                        times.add(sent.elapsed());
                    }
                    until_slow = until_slow.saturating_sub(1);
                }
                anyhow::Ok((connection, times))
            });
        }
        let mut all = Times::default();
        while let Some(done) = tasks.join_next().await {
            let (connection, times) = done??;
            all.extend(&times);
            self.connections.push(connection);
        }
        Ok((all, began.elapsed()))
    }
}

/// Calls at a given rate for so long, whether or not those before have been answered. A time counts from when the call *should* have been sent: a system that stands still
/// for a second has made everybody late who would have called in it, not only the one whose call was under way.
pub(crate) async fn at_rate(target: &Target, per_second: u32, time: Duration) -> anyhow::Result<(Times, Duration)> {
    let began = Instant::now();
    let mut due = ticks(began, per_second, time)?;
    let free = Rc::new(RefCell::new(Vec::<Connection>::new()));
    let tasks = tokio::task::LocalSet::new();
    let mut calls = Vec::new();
    tasks
        .run_until(async {
            while let Some(intended) = due.recv().await {
                let (target, free) = (target.clone(), Rc::clone(&free));
                calls.push(tokio::task::spawn_local(async move {
                    let connection = free.borrow_mut().pop();
                    let mut connection = match connection {
                        Some(connection) => connection,
                        None => Connection::open(target.at).await?,
                    };
                    connection.call(&target).await?;
                    let took = intended.elapsed();
                    free.borrow_mut().push(connection);
                    anyhow::Ok(took)
                }));
            }
            let mut times = Times::default();
            for call in calls {
                times.add(call.await??);
            }
            Ok((times, began.elapsed()))
        })
        .await
}

/// When calls are to be sent, told when it is time: by a thread, because the timers of the runtime know whole milliseconds only.
fn ticks(began: Instant, per_second: u32, time: Duration) -> anyhow::Result<mpsc::UnboundedReceiver<Instant>> {
    let (tell, told) = mpsc::unbounded_channel();
    std::thread::Builder::new()
        .name("ticks".to_owned())
        .spawn(move || {
            for number in 0.. {
                let after = Duration::from_secs(number) / per_second.max(1);
                if after >= time {
                    return;
                }
                let intended = began + after;
                std::thread::sleep(intended.saturating_duration_since(Instant::now()));
                if tell.send(intended).is_err() {
                    return;
                }
            }
        })
        .context("no thread that tells the time")?;
    Ok(told)
}
