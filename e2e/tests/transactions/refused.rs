//! Bad input: the status code of the wire, and a problem document that says why.

use bluebox_e2e::{Call, World};
use http::Method;

use crate::scene::{COORDINATOR, Scene, is_problem};

pub async fn what_is_not_there_is_404_and_what_is_gone_410(world: World) {
    let scene = Scene::with(world, |spec| spec.flag("--keep-transactions", "1h")).await;
    // Begun in 1970: longer ago than anything is kept.
    let gone = format!("{COORDINATOR}/0001-000000000001-0123456789abcdef");
    is_problem(&scene.get(&gone).await, 410, "gone");
    is_problem(&scene.put(&format!("{gone}/close")).await, 410, "gone");
    let made = scene.start().await;
    let (known, _) = made.rsplit_once('-').unwrap();
    is_problem(&scene.get(&format!("{known}-ffffffffffffffff")).await, 404, "unknown");
    is_problem(&scene.put(&format!("{known}-ffffffffffffffff/cancel")).await, 404, "unknown");
    // There are not so many partitions.
    is_problem(&scene.get(&format!("{COORDINATOR}/00ff-000000000001-0123456789abcdef")).await, 404, "unknown");
    is_problem(&scene.get("http://txmgr/v1/partitions/00ff-000000000001-0123456789abcdef").await, 404, "unknown");
    for nothing in ["/no-lra", "/no-lra/close", "/recovery/x/y/z", "/nested/x/status"] {
        is_problem(&scene.get(&format!("{COORDINATOR}{nothing}")).await, 404, "no-such-resource");
    }
    is_problem(&scene.get("http://txmgr/elsewhere").await, 404, "no-such-resource");
    is_problem(&scene.client.call(Call::post(&format!("{COORDINATOR}/start?ParentLRA=nonsense"), "")).await, 404, "unknown");
    let parent = format!("{known}-ffffffffffffffff").replace(':', "%3A").replace('/', "%2F");
    is_problem(&scene.client.call(Call::post(&format!("{COORDINATOR}/start?ParentLRA={parent}"), "")).await, 404, "no-parent");
}

pub async fn joins_that_make_no_sense_are_400(world: World) {
    let scene = Scene::new(world).await;
    scene.service("hotel").await;
    let lra = scene.start().await;
    for links in [
        "",
        "no link",
        "<http://hotel/c>",
        "<http://hotel/c; rel=compensate",
        "<http://hotel/x>; rel=\"complete\"",
        "<http://hotel/a>; rel=compensate, <http://hotel/b>; rel=compensate",
    ] {
        is_problem(&scene.client.call(Call::new(Method::PUT, &lra).with("link", links)).await, 400, "malformed");
    }
    is_problem(&scene.put(&lra).await, 400, "malformed");
    let long = format!("<http://hotel/{}>; rel=compensate", "x".repeat(20_000));
    is_problem(&scene.client.call(Call::new(Method::PUT, &lra).body(long)).await, 413, "too-large");
    is_problem(
        &scene
            .client
            .call(
                Call::new(Method::PUT, &lra)
                    .body("<http://hotel/c>; rel=compensate")
                    .with("narayana-lra-participant-data", "x")
                    .with("narayana-lra-api-version", "1.0"),
            )
            .await,
        412,
        "no-data",
    );
}

pub async fn nobody_is_called_who_is_no_component_and_not_in_the_allow_list(world: World) {
    let scene = Scene::new(world).await;
    scene.service("hotel").await;
    let lra = scene.start().await;
    for url in [
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:22/",
        "http://localhost/",
        "http://nobody/compensate",
        "http://hotel:81/compensate",
        "http://hotel:99999/compensate",
        "https://hotel/compensate",
        "http://user@hotel/compensate",
        "file:///etc/passwd",
        "/compensate",
        "http://txmgr/lra-coordinator/start",
        &format!("{lra}/close"),
        "http://hotel/../admin",
    ] {
        is_problem(&scene.client.call(Call::new(Method::PUT, &lra).with("link", &format!("<{url}>; rel=\"compensate\""))).await, 412, "refused-url");
    }
    assert_eq!(scene.put(&format!("{lra}/cancel")).await.text(), "Cancelled");
}

pub async fn limits_versions_and_methods_are_checked(world: World) {
    let scene = Scene::new(world).await;
    let lra = scene.start().await;
    for limit in ["9223372036854775808", "1e3", "x", "5s"] {
        is_problem(&scene.client.call(Call::post(&format!("{COORDINATOR}/start?TimeLimit={limit}"), "")).await, 400, "malformed");
        is_problem(&scene.put(&format!("{lra}/renew?TimeLimit={limit}")).await, 400, "malformed");
    }
    // As far in the future as can be said.
    let far = scene.start_with("&TimeLimit=9223372036854775807").await;
    assert_eq!(scene.status(&far).await, "Active");
    is_problem(&scene.client.call(Call::get(&lra).with("narayana-lra-api-version", "1.4")).await, 417, "unsupported-version");
    for (method, path, allow) in [
        (Method::GET, format!("{COORDINATOR}/start"), "POST"),
        (Method::POST, lra.clone(), "GET, HEAD, PUT"),
        (Method::GET, format!("{lra}/close"), "PUT"),
        (Method::DELETE, format!("{lra}/status"), "GET, HEAD"),
        (Method::POST, COORDINATOR.to_owned(), "GET, HEAD"),
    ] {
        let answer = scene.client.call(Call::new(method, &path)).await;
        is_problem(&answer, 405, "method-not-allowed");
        assert_eq!(answer.header("allow"), allow);
    }
    // The head of whatever can be read.
    for (path, status) in [(lra.clone(), 200), (format!("{lra}/status"), 200), (format!("{lra}/close"), 405), (format!("{COORDINATOR}/nothing"), 404)] {
        let answer = scene.client.call(Call::new(Method::HEAD, &path)).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, ""), "{path}: {answer:?}");
    }
}

pub async fn nested_ones_make_no_cycles(world: World) {
    let scene = Scene::new(world).await;
    let parent = scene.start().await;
    let child = scene.start_with(&format!("&ParentLRA={}", parent.replace(':', "%3A").replace('/', "%2F"))).await;
    let (parent_id, child_id) = (parent.rsplit('/').next().unwrap(), child.rsplit('/').next().unwrap());
    let links = |id: &str| format!("<{COORDINATOR}/nested/{id}/compensate>; rel=\"compensate\", <{COORDINATOR}/nested/{id}/complete>; rel=\"complete\"");
    // The parent as participant of its child, and of itself.
    for (of, id) in [(&child, parent_id), (&parent, parent_id), (&child, child_id)] {
        is_problem(&scene.client.call(Call::new(Method::PUT, of).with("link", &links(id))).await, 412, "refused-url");
    }
    let again = scene.client.call(Call::new(Method::PUT, &parent).with("link", &links(child_id))).await;
    assert_eq!(again.status, 200, "it is one already: {again:?}");
}
