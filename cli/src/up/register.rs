//! Registers all components before anything runs. Otherwise the first calls of the first app would find nobody of that name, and be passed on to where names without
//! a component lead: nowhere.

use std::sync::Arc;
use std::time::Duration;

use bluebox_core::Log;
use bluebox_core::log::Health;
use bluebox_proxy::registry::{Directory, RegisterError, Registration, follow};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::output::{Output, Tone};
use crate::units::so_many;

/// After this long there is a word about it, and with the log away the boxes are started all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// Registers the components of a system; done when they are, or when the log is away and there is no use in waiting. Then it goes on in the background.
///
/// # Errors
/// When what is there contradicts what the file says.
pub(crate) async fn register(log: Arc<dyn Log>, registration: Registration, output: &Output) -> Result<(), RegisterError> {
    let (publish, mut directory) = watch::channel(Directory::default());
    let health = log.health();
    let components = registration.serves.len();
    let watched = directory.clone();
    let mut following = Following(tokio::spawn(follow(log, registration, publish)));
    loop {
        tokio::select! {
            ended = &mut following.0 => return ended.unwrap_or(Ok(())),
            registered = directory.wait_for(|directory| directory.registered) => if registered.is_ok() { return Ok(()) },
            () = tokio::time::sleep(PATIENCE) => {
                if matches!(*health.borrow(), Health::Away(_)) {
                    tokio::spawn(go_on(following, watched, output.clone()));
                    return Ok(());
                }
                output.say(Tone::News, format!("making the topics of {}; the boxes start when they are there", so_many(components, "component", "components")));
            }
        }
    }
}

/// The registry is followed for as long as this is kept.
struct Following(JoinHandle<Result<(), RegisterError>>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn go_on(mut following: Following, mut directory: watch::Receiver<Directory>, output: Output) {
    tokio::select! {
        ended = &mut following.0 => if let Ok(Err(error)) = ended {
            output.say(Tone::Trouble, format!("the components can't be registered: {error}"));
        },
        _ = directory.wait_for(|directory| directory.registered) => output.say(Tone::Good, "all components are registered"),
    }
}
