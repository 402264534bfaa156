//! One process that fails at one point, and everything around it that does not.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use bluebox_e2e::{App, Faults, LogKind, ProxySpec, Supervised, World};
use nix::sys::signal::Signal;

use crate::traffic::{CALLER_FLAGS, FLAGS, Gate, Traffic, behave};

/// How long the point may take to be met, and everything to be well again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which process fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Shop,
    Cart,
    Log,
}

/// What goes on around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum While {
    /// Calls of each kind.
    Calls,
    /// A box that died with calls under way has been started again.
    Takeover,
    /// Two in a row have died with calls under way.
    Solo,
    /// Another box joins.
    Handover,
    /// The box is asked to end.
    Stop,
    /// A lane stands still until it is parked.
    Park,
}

/// What a process does of which a part has panicked, or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It lives on: the caller is told, or it is tried again.
    LivesOn,
    /// It ends, and is started afresh.
    Ends,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub point: &'static str,
    pub at: At,
    pub during: While,
    pub panic: Then,
    pub error: Then,
}

pub(crate) const ACTIONS: [&str; 4] = ["panic", "error", "delay", "kill"];

impl Row {
    /// How the process ends, if it does.
    fn ends(&self, action: &str) -> Option<&'static str> {
        let ends = |then: Then, how| (then == Then::Ends).then_some(how);
        match action {
            "panic" => ends(self.panic, "exit code 101"),
            "error" => ends(self.error, "exit code 70"),
            "kill" => Some("SIGKILL"),
            _ => None,
        }
    }
}

fn describe(status: &ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "SIGKILL".to_owned(),
        (None, signal) => format!("signal {signal:?}"),
    }
}

struct Scene {
    app: App,
    gate: Gate,
    faults: Faults,
    shop_at: std::net::SocketAddr,
    shop: Supervised,
    cart: Supervised,
    log: Option<Supervised>,
    /// Times that this test ended the cart itself.
    ended_by_test: usize,
}

/// Injures one process once, and sees whether a promise is broken.
pub(crate) async fn play(world: &mut World, row: Row, action: &str, bug: Option<&str>) -> Result<(), String> {
    // What a bug has lost never comes.
    let patience = if bug.is_some() { Duration::from_secs(20) } else { PATIENCE };
    let mut faults = Faults::fail_point(row.point, action, world.directory());
    if let Some(bug) = bug {
        faults = faults.with_bug(bug);
    }
    // Only one process fails, but a bug is everywhere.
    let faulty = |spec: ProxySpec, here: bool| if here || bug.is_some() { spec.faulty(faults.clone()) } else { spec };
    let log = if row.at == At::Log || (bug.is_some() && world.log() == LogKind::Embedded) { Some(world.supervise_log(faults.clone()).await) } else { None };
    let (app, gate) = (world.app("cart").await, Gate::default());
    behave(&app, &gate);
    let cart_spec = |world: &World| FLAGS.iter().fold(world.proxy("cart").serves("cart", &app, 2), |spec, (name, value)| spec.flag(name, value));
    let shop_spec = CALLER_FLAGS.iter().fold(world.proxy("shop"), |spec, (name, value)| spec.flag(name, value));
    let (cart, shop) = (faulty(cart_spec(world), row.at == At::Cart), faulty(shop_spec, row.at == At::Shop));
    let shop_at = shop.address();
    let (cart, shop) = (cart.supervise().await, shop.supervise().await);
    let spare = cart_spec(world);
    let mut scene = Scene { app, gate, faults, shop_at, shop, cart, log, ended_by_test: 0 };
    let mut traffic = Traffic::default();
    bluebox_e2e::proxy::knows(shop_at, "cart").await;
    scene.until_calls_go_through(&mut traffic).await?;
    let _spare = scene.begin(&mut traffic, row.during, spare).await?;

    let until = Instant::now() + PATIENCE;
    while scene.faults.is_armed() {
        if Instant::now() > until {
            return Err(format!("{} was never met", row.point));
        }
        traffic.round(scene.shop_at).await?;
    }
    scene.until_it_has_ended(row, action).await?;
    scene.gate.open();
    scene.answer_held();
    scene.until_calls_go_through(&mut traffic).await?;
    scene.answer_held();
    traffic.all_end(scene.shop_at, patience).await?;
    // In whichever partition: what has not been delivered again by now has ended.
    for _ in 0..4 {
        traffic.round(scene.shop_at).await?;
    }
    traffic.all_end(scene.shop_at, patience).await?;
    traffic.check(&scene.app)?;
    scene.check_ends(row, action)
}

impl Scene {
    async fn until_calls_go_through(&self, traffic: &mut Traffic) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        let wanted = traffic.outcomes + 5;
        while traffic.outcomes < wanted {
            if Instant::now() > until {
                return Err("calls do not go through".to_owned());
            }
            traffic.round(self.shop_at).await?;
        }
        Ok(())
    }

    /// Does what the scene is about; the point is armed when it comes to that.
    async fn begin(&mut self, traffic: &mut Traffic, what: While, spare: ProxySpec) -> Result<Option<Supervised>, String> {
        let deaths = match what {
            While::Takeover => 1,
            While::Solo => 2,
            _ => 0,
        };
        if deaths > 0 {
            traffic.accept(self.shop_at, "held").await?;
        }
        for death in 1..=deaths {
            let under_way = self.app.next().await;
            if death == deaths {
                self.faults.arm();
            }
            self.end_cart(Signal::SIGKILL);
            drop(under_way);
        }
        match what {
            While::Calls => self.faults.arm(),
            While::Takeover | While::Solo => {}
            While::Handover => {
                self.faults.arm();
                return Ok(Some(spare.supervise().await));
            }
            While::Stop => {
                self.faults.arm();
                self.end_cart(Signal::SIGTERM);
            }
            While::Park => {
                self.faults.arm();
                for _ in 0..3 {
                    traffic.accept(self.shop_at, "parked").await?;
                }
            }
        }
        Ok(None)
    }

    /// Answers what came while the gate was closed.
    fn answer_held(&mut self) {
        while let Some(delivery) = self.app.already() {
            let body = delivery.asked.body.clone();
            delivery.answer(200, body);
        }
    }

    fn end_cart(&mut self, signal: Signal) {
        self.ended_by_test += 1;
        self.cart.signal(signal);
    }

    /// Waits until what has to end at the point has: a panic first prints its backtrace, for seconds on a busy machine, and the other threads go on meanwhile.
    async fn until_it_has_ended(&self, row: Row, action: &str) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        while let Err(not_yet) = self.check_ends(row, action) {
            if Instant::now() > until {
                return Err(not_yet);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The process that failed did so as it should, and was started afresh; the others lived on.
    fn check_ends(&self, row: Row, action: &str) -> Result<(), String> {
        for (at, process) in [(At::Shop, Some(&self.shop)), (At::Cart, Some(&self.cart)), (At::Log, self.log.as_ref())] {
            let Some(process) = process else { continue };
            let mut ends: Vec<_> = process.ends().iter().map(describe).collect();
            let wanted = row.ends(action).filter(|_| at == row.at);
            if at == At::Cart {
                // One of them may be that at which it failed instead.
                ends.drain(..self.ended_by_test.min(ends.len()).saturating_sub(usize::from(row.during == While::Stop && wanted.is_some())));
            }
            if ends.iter().map(String::as_str).collect::<Vec<_>>() != wanted.into_iter().collect::<Vec<_>>() {
                return Err(format!("{at:?}: it ended with {ends:?}; expected was {wanted:?}"));
            }
        }
        Ok(())
    }
}
