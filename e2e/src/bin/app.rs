//! An app as a process: whatever arrives at its port is answered by the test that started it.
//!
//! `bluebox-e2e-app LISTEN TEST`: bytes go through in both directions, so the process can be killed, stopped and started like any app, while what it has seen stays with
//! the test. It ends when its standard input does, so that none outlives its test.

use std::io::Read as _;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(test)) = (arguments.next(), arguments.next()) else {
        return Err("bluebox-e2e-app LISTEN TEST".into());
    };
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let listener = TcpListener::bind(&listen).await?;
    loop {
        let (mut from_proxy, _) = listener.accept().await?;
        let test = test.clone();
        tokio::spawn(async move {
            if let Ok(mut to_test) = TcpStream::connect(&test).await {
                let _ = from_proxy.set_nodelay(true);
                let _ = to_test.set_nodelay(true);
                let _ = copy_bidirectional(&mut from_proxy, &mut to_test).await;
            }
        });
    }
}
