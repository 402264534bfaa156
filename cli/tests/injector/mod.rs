//! `bluebox injector` beside an API server that knows no more than it asks for: a Secret, a webhook's configuration, and namespaces.

#![allow(unreachable_pub, clippy::unwrap_used, reason = "it is all test")]

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::common::{bluebox, get_through, wait_until};

const API_SERVER: &str = r#"
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
there = {}
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def do_GET(self):
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[1]
        if path in there:
            return self.answer(200, there[path])
        if "/secrets/" in path:
            return self.answer(200, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}})
        if "/mutatingwebhookconfigurations/" in path:
            return self.answer(200, {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": name}, "webhooks": []})
        if "/namespaces/" in path:
            labels = {"bluebox.dev/injection": "enabled"}
            return self.answer(200, {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": name, "labels": labels}})
        self.answer(404, {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "not found", "reason": "NotFound", "code": 404})
    def put(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        there[self.path.split("?")[0]] = body
        self.answer(200, body)
    do_PUT = put
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(403, {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "no", "reason": "Forbidden", "code": 403})
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

/// Running; dropped, it is killed.
pub struct Injector {
    api_server: Child,
    injector: Child,
    listen: SocketAddr,
    admin: SocketAddr,
    place: TempDir,
}

impl Injector {
    pub fn start() -> Self {
        let place = TempDir::new().unwrap();
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (api_server_at, listen, admin) = (at(port()), at(port()), at(port()));
        let api_server = Command::new("python3").args(["-c", API_SERVER, &api_server_at.port().to_string()]).stdin(Stdio::null()).spawn().unwrap();
        wait_until("the API server is there", || TcpStream::connect(api_server_at).ok());
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{api_server_at}")}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(place.path().join("kubeconfig"), config.to_string()).unwrap();
        let mut command = bluebox();
        command.args(["injector", "--listen", &listen.to_string(), "--admin", &admin.to_string(), "--proxy-image", "bluebox:1", "--kafka-secret", "kafka"]);
        let injector =
            command.env("KUBECONFIG", place.path().join("kubeconfig")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let review = serde_json::json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"}, "namespace": "shop", "operation": "CREATE", "userInfo": {},
                "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cart"}, "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]}},
            },
        });
        std::fs::write(place.path().join("review.json"), review.to_string()).unwrap();
        let injector = Self { api_server, injector, listen, admin, place };
        wait_until("the injector shows a certificate", || {
            TcpStream::connect(admin).ok()?;
            let (_, metrics) = get_through(admin, &format!("http://{admin}/metrics"));
            metrics.lines().any(|line| line.starts_with("bluebox_injector_certificate_until_seconds ") && !line.ends_with(" 0")).then_some(())
        });
        injector
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Has a pod judged, as the API server does.
    pub fn review(&self) {
        let url = format!("https://{}/inject?timeout=5s", self.listen);
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--insecure", "--fail", "--header", "content-type: application/json", "--data", "@review.json", &url]);
        let asked = command.current_dir(self.place.path()).output().unwrap();
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    }

    /// Speaks something else than TLS to it.
    pub fn nonsense(&self) {
        let _ = TcpStream::connect(self.listen).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n");
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        for child in [&mut self.injector, &mut self.api_server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
