//! Server-sent events.

use serde_json::Value;

use crate::support::{Site, image, instance};

#[test]
fn a_jobs_stream_has_all_its_events_and_ends() {
    let site = Site::with_node();
    let red = site.token("tenant", Some("red"));
    let reply = site.post("/v1/instances", &red, &instance("a", None)).good();
    let job = reply.json()["job"].as_str().unwrap().to_owned();
    let path = format!("/v1/jobs/{job}/events");
    // From its first event on, while it goes on; the stream ends by itself.
    let live = site.stream(&path, &red, &[], |_| false);
    assert!(live.len() >= 2, "{live:?}");
    assert!(live.windows(2).all(|pair| pair[0].0 < pair[1].0), "{live:?}");
    assert!(live.iter().all(|(id, kind, data)| {
        data["job"] == *job && data["sequence"] == *id && data["kind"] == **kind
    }));
    site.succeed(&reply);
    assert_eq!(site.stream(&path, &red, &[], |_| false), live, "afterwards it is the same");
    let listed = site.get(&format!("/v1/events?job={job}&limit=1000"), &red).good().json();
    assert_eq!(listed["items"].as_array().unwrap().len(), live.len());
    // Taken up anywhere, it goes on there.
    for (position, (id, _, _)) in live.iter().enumerate() {
        let rest = &live[position + 1..];
        assert_eq!(site.stream(&path, &red, &[&format!("last-event-id: {id}")], |_| false), rest);
        assert_eq!(site.stream(&format!("{path}?after={id}"), &red, &[], |_| false), rest);
        // The newer word is the browser's own.
        let both =
            site.stream(&format!("{path}?after=0"), &red, &[&format!("last-event-id: {id}")], |_| false);
        assert_eq!(both, rest);
    }
}

#[test]
fn the_grids_stream_is_resumed_without_a_gap() {
    let site = Site::new();
    let make = |name: &str| drop(site.post("/v1/images", &site.operator, &image(name)).good());
    for number in 0..5 {
        make(&format!("before-{number}"));
    }
    let all = |seen: &[(u64, String, Value)]| seen.len() >= 5;
    let first = site.stream("/v1/events/stream?after=0", &site.operator, &[], all);
    let last = first.last().unwrap().0;
    // What happens while nobody listens comes when somebody does, and what happens then comes too.
    make("between");
    let header = format!("last-event-id: {last}");
    let has = |seen: &[(u64, String, Value)]| {
        seen.iter().any(|(_, _, data)| data["message"].to_string().contains("after"))
    };
    let rest = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            site.stream("/v1/events", &site.operator, &[&header, "accept: text/event-stream"], has)
        });
        make("after");
        reader.join().unwrap()
    });
    let ids: Vec<u64> = first.iter().chain(&rest).map(|(id, _, _)| *id).collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>(), "each once, in order");
    let messages: Vec<String> = rest.iter().map(|(_, _, data)| data["message"].to_string()).collect();
    assert!(messages.iter().any(|message| message.contains("between")), "{messages:?}");
}

#[test]
fn a_stream_is_filtered_and_ends_with_its_token_and_the_controller() {
    let mut site = Site::with_node();
    let (red, blue) = (site.token("tenant", Some("red")), site.token("tenant", Some("blue")));
    let (a, b) = (site.instance("a", &red), site.instance("b", &blue));
    let own = site.stream("/v1/events/stream?after=0", &red, &[], |seen| seen.len() >= 2);
    assert!(own.iter().all(|(_, _, data)| data["project"] == "red"), "{own:?}");
    let about = format!("/v1/events/stream?after=0&subject=instances/{b}");
    let about = site.stream(&about, &site.operator, &[], |seen| !seen.is_empty());
    assert!(about.iter().all(|(_, _, data)| data["subject"] == format!("instances/{b}")));
    assert_eq!(site.get(&format!("/v1/jobs/{a}/events"), &red).status, 404);

    let tokens = site.get("/v1/tokens", &site.operator).json();
    let id =
        tokens["items"].as_array().unwrap().iter().find(|token| token["project"] == "red").unwrap()["id"]
            .clone();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| site.stream("/v1/events/stream", &red, &[], |_| false));
        let path = format!("/v1/tokens/{}", id.as_str().unwrap());
        // A stream that is asked for after that is refused, which is as good.
        std::thread::sleep(std::time::Duration::from_millis(200));
        site.change("DELETE", &path, &site.operator, &Value::Null).good();
        reader.join().unwrap();
    });
    let agent = crate::support::agent(&site.file("ca.pem"));
    let token = format!("Bearer {blue}");
    let open = agent.get(site.url("/v1/events/stream")).header("authorization", token).call().unwrap();
    // Would wait for ever, did it not end the stream.
    site.restart();
    let text = open.into_body().read_to_string().unwrap_or_default();
    assert!(!text.contains("event:"), "{text}");
}
