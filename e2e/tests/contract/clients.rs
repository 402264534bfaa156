//! Unchanged programs: what they know of Bluebox is `http_proxy`.

use std::process::Command;

use bluebox_e2e::{Process, Proxy, World, within};

use crate::common::{cart, shop};

/// Runs a program that only knows its proxy from its environment, and gives what it says.
async fn run(shop: &Proxy, program: &str, arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env("http_proxy", format!("http://{}", shop.address())).env_remove("no_proxy").env_remove("NO_PROXY");
    let output = within(std::time::Duration::from_secs(40), "the program ends", command.kill_on_drop(true).output()).await.unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub async fn curl(world: World) {
    let (app, _cart, shop) = shop(&world, &[]).await;
    app.echo();
    assert_eq!(run(&shop, "curl", &["-sS", "http://cart/order", "--data", "a book"]).await, "a book");
    // A body that asks first (Expect: 100-continue) and one of unknown length.
    assert_eq!(run(&shop, "curl", &["-sS", "http://cart/order", "--data", "a book", "-H", "Expect: 100-continue"]).await, "a book");
    assert_eq!(run(&shop, "curl", &["-sS", "http://cart/order", "--data", "a book", "-H", "Transfer-Encoding: chunked"]).await, "a book");
    // By Host alone, without a proxy setting.
    let direct = format!("http://{}/order", shop.address());
    assert_eq!(run(&shop, "curl", &["-sS", "--noproxy", "*", &direct, "-H", "Host: cart", "--data", "a book"]).await, "a book");
    // HTTP/2 without TLS.
    assert_eq!(run(&shop, "curl", &["-sS", "--noproxy", "*", "--http2-prior-knowledge", &direct, "-H", "Host: cart", "--data", "a book"]).await, "a book");
    // Two requests on one connection.
    assert_eq!(run(&shop, "curl", &["-sS", "http://cart/1", "http://cart/2", "--data", "x"]).await, "xx");
}

pub async fn pythons_urllib(world: World) {
    let (mut app, _cart, shop) = shop(&world, &[]).await;
    let script = "import urllib.request, urllib.error\n\
        try: urllib.request.urlopen('http://cart/a?b=c', data=b'a book')\n\
        except urllib.error.HTTPError as error: print(error.code, error.headers['x-mine'], error.read().decode())\n\
        print(urllib.request.urlopen(urllib.request.Request('http://cart/d', method='DELETE')).status)";
    let answering = async {
        let delivery = app.next().await;
        assert_eq!((delivery.asked.target.as_str(), delivery.asked.text()), ("/a?b=c", "a book"));
        delivery.respond(http::Response::builder().status(409).header("x-mine", "yes").body(bluebox_e2e::app::content("sold out")).unwrap());
        app.next().await.answer(204, "");
    };
    let arguments = ["-c", script];
    let (said, ()) = tokio::join!(run(&shop, "python3", &arguments), answering);
    assert_eq!(said, "409 yes sold out\n204\n");
}

pub async fn an_app_of_the_standard_library(world: World) {
    let app = world.app("unused").await;
    let address = world.address();
    let script = format!(
        "import http.server\n\
        class App(http.server.BaseHTTPRequestHandler):\n\
        \x20   def do_POST(self):\n\
        \x20       body = self.rfile.read(int(self.headers['content-length'] or 0))\n\
        \x20       self.send_response(200)\n\
        \x20       self.end_headers()\n\
        \x20       self.wfile.write(body.upper())\n\
        http.server.ThreadingHTTPServer(('{}', {}), App).serve_forever()",
        address.ip(),
        address.port()
    );
    let mut command = Command::new("python3");
    command.args(["-c", &script]);
    let python = Process::start("python", command, world.directory());
    let box_of_it = world.proxy("upper").flag("--serve", &format!("upper={address},partitions=2")).start().await;
    let _unused = cart(&world, &app, &[]).await;
    box_of_it.knows("upper").await;
    assert_eq!(run(&box_of_it, "curl", &["-sS", "http://upper/", "--data", "a book"]).await, "A BOOK");
    drop(python);
}
