//! What is wrong, too much or not to be trusted.

use super::*;

#[test]
fn indexes_inside_each_other_end_at_two() {
    let mut image = Handmade::gzipped(1000);
    let wrap = |image: &mut Handmade| {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json",
            "digest":"{}","size":{}}}]}}"#,
            image.index,
            image.blobs[&image.index].len()
        );
        image.index = digest(index.as_bytes());
        image.blobs.insert(image.index.clone(), index.into_bytes());
        image.index.clone()
    };
    let (two, three) = (wrap(&mut image), wrap(&mut image));
    let tars = image.tars.clone();
    let server = serve(move |seen| image.answer(&seen.path));
    pull_all(&client(), &layout(&server.url, &two), &tars);
    let error = client().resolve(&layout(&server.url, &three)).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unsupported);
}

#[test]
fn wrong_bytes_and_wrong_sizes_are_told_apart() {
    let flip = |at: usize| {
        move |_: &Seen, body: &[u8]| {
            let mut body = body.to_vec();
            body[at] ^= 1;
            ok(&body)
        }
    };
    // In the gzip header, where the decoder fails first, and in the data.
    for at in [1, 100_000] {
        let (result, _) = pull_with_layer_script(Handmade::gzipped(200_000), flip(at));
        assert_eq!(result.unwrap_err().kind(), ImageErrorKind::DigestMismatch, "byte {at}");
    }
    let longer = |_: &Seen, body: &[u8]| ok(&[body, b"x"].concat());
    let (result, _) = pull_with_layer_script(Handmade::gzipped(1000), longer);
    assert_eq!(result.unwrap_err().kind(), ImageErrorKind::SizeMismatch);
    let unannounced = |_: &Seen, body: &[u8]| Reply { close_delimited: true, ..ok(&[body, b"x"].concat()) };
    let (result, _) = pull_with_layer_script(Handmade::gzipped(1000), unannounced);
    assert_eq!(result.unwrap_err().kind(), ImageErrorKind::SizeMismatch);
}

#[test]
fn layers_that_are_not_what_their_image_says() {
    let tar = noise(50_000);
    let cut = gzip(&tar)[..20_000].to_vec();
    let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(27).unwrap();
    wide.write_all(&tar).unwrap();
    let cases = [
        (GZIP, gzip(&tar), b"another tar".to_vec(), ImageErrorKind::DigestMismatch),
        (GZIP, tar.clone(), tar.clone(), ImageErrorKind::Malformed),
        (GZIP, cut, tar.clone(), ImageErrorKind::Malformed),
        (ZSTD, gzip(&tar), tar.clone(), ImageErrorKind::Malformed),
        (ZSTD, wide.finish().unwrap(), tar.clone(), ImageErrorKind::Unsupported),
    ];
    for (media_type, stored, tar, kind) in cases {
        let image = Handmade::new(&[(media_type, stored, tar)]);
        let index = image.index.clone();
        let server = serve(move |seen| image.answer(&seen.path));
        let reference = layout(&server.url, &index);
        let resolved = client().resolve(&reference).unwrap();
        let error = pull(&client(), &reference, &resolved.layers[0]).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[test]
fn a_bomb_stops_at_the_callers_limit() {
    let tar = vec![0; 50 << 20];
    let image = Handmade::new(&[(ZSTD, zstd::encode_all(&tar[..], 1).unwrap(), tar)]);
    let index = image.index.clone();
    let server = serve(move |seen| image.answer(&seen.path));
    let reference = layout(&server.url, &index);
    let layer = client().resolve(&reference).unwrap().layers[0].clone();
    let error = client().open_layer(&reference, &layer, 1 << 20).unwrap().finish().unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::TooLarge);
    assert!(client().open_layer(&reference, &layer, 50 << 20).unwrap().finish().is_ok());
}

#[test]
fn documents_are_verified_and_bounded() {
    let server = serve(|_| ok(b"{}"));
    let error = client().resolve(&layout(&server.url, &digest(b"other"))).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::DigestMismatch);
    let endless = serve(|_| Reply { close_delimited: true, ..ok(&vec![b' '; 5 << 20]) });
    let announced = serve(|_| Reply { length: Some(5 << 20), ..ok(b"{") });
    for url in [&endless.url, &announced.url] {
        let error = client().resolve(&layout(url, &digest(b""))).unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::TooLarge);
    }
}

#[test]
fn redirects_are_bounded_and_carry_no_credentials_away() {
    let image = Handmade::gzipped(1000);
    let (index, tars) = (image.index.clone(), image.tars.clone());
    let leaked = Arc::new(AtomicUsize::new(0));
    let leaks = leaked.clone();
    let storage = serve(move |seen| {
        leaks.fetch_add(seen.headers.contains_key("authorization").into(), Ordering::SeqCst);
        image.answer(seen.path.split('?').next().unwrap())
    });
    let target = storage.url.clone();
    let authorized = Arc::new(AtomicUsize::new(0));
    let authorizations = authorized.clone();
    let front = serve(move |seen| {
        if seen.headers.get("authorization").map(String::as_str) != Some("Basic dXNlcjpzZWNyZXQ=") {
            return Reply {
                headers: vec![("www-authenticate", "Basic realm=\"x\"".to_owned())],
                ..status(401)
            };
        }
        authorizations.fetch_add(1, Ordering::SeqCst);
        Reply { headers: vec![("location", format!("{target}{}?signature=1", seen.path))], ..status(307) }
    });
    let url = front.url.replace("http://", "http://user:secret@");
    pull_all(&client(), &layout(&url, &index), &tars);
    assert_eq!((authorized.load(Ordering::SeqCst), leaked.load(Ordering::SeqCst)), (4, 0));
    assert_eq!(
        client().resolve(&layout(&front.url, &index)).unwrap_err().kind(),
        ImageErrorKind::Unauthorized
    );

    for (location, requests) in [("/again", 6), ("file:///etc/passwd", 1), ("ftp://host/x", 1)] {
        let server =
            serve(move |_| Reply { headers: vec![("location", location.to_owned())], ..status(302) });
        let error = client().resolve(&layout(&server.url, &index)).unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::Unsupported, "{location}");
        assert_eq!(server.requests.load(Ordering::SeqCst), requests, "{location}");
    }
}

#[test]
fn a_bearer_challenge_is_answered_with_a_token() {
    let image = Handmade::gzipped(1000);
    let (index, tars) = (image.index.clone(), image.tars.clone());
    let tokens = serve(|seen| {
        assert_eq!(seen.path, "/token?service=s%2C1&scope=repository%3Aa%2Fb%3Apull%2Cpush");
        assert_eq!(seen.headers.get("authorization").map(String::as_str), Some("Basic dXNlcjpzZWNyZXQ="));
        ok(br#"{"token":"t0"}"#)
    });
    let realm = format!("{}/token", tokens.url);
    let registry = serve(move |seen| {
        assert!(seen.path.starts_with("/v2/a/b/"), "{}", seen.path);
        if seen.headers.get("authorization").map(String::as_str) == Some("Bearer t0") {
            return image.answer(&seen.path);
        }
        let challenge = format!(r#"Bearer realm="{realm}",service="s,1",scope="repository:a/b:pull,push""#);
        Reply { headers: vec![("www-authenticate", challenge)], ..status(401) }
    });
    let url = registry.url.replace("http://", "http://user:secret@");
    let source = Source::Registry { url, repository: "a/b".to_owned() };
    assert!(!format!("{source:?}").contains("secret"));
    pull_all(&client(), &reference(source, &index), &tars);
    assert_eq!(tokens.requests.load(Ordering::SeqCst), 1, "the token was not kept");
}

#[test]
fn https_with_an_own_authority_and_no_way_back_to_http() {
    let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let pem = key.cert.pem().into_bytes();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let image = Handmade::gzipped(100_000);
    let (index, tars) = (image.index.clone(), image.tars.clone());
    let script: Script = Arc::new(move |seen: &Seen| {
        if seen.path.starts_with("/down/") {
            return Reply { headers: vec![("location", "http://127.0.0.1:9/".to_owned())], ..status(302) };
        }
        image.answer(&seen.path)
    });
    let server = serve_with(script, Some(Arc::new(tls)));
    let error = client().resolve(&layout(&server.url, &index)).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ImageErrorKind::Untrusted, false), "{error}");
    let trusting = Client::new(ClientOptions { extra_ca_pem: Some(pem), ..options() }).unwrap();
    pull_all(&trusting, &layout(&server.url, &index), &tars);
    let error = trusting.resolve(&layout(&format!("{}/down", server.url), &index)).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unsupported);
    assert!(error.to_string().contains("from https to http://127.0.0.1:9/"), "{error}");
    let none = Client::new(ClientOptions { extra_ca_pem: Some(b"no PEM".to_vec()), ..options() });
    assert_eq!(none.err().unwrap().kind(), ImageErrorKind::Malformed);
}

#[test]
fn references_that_cannot_be_meant_are_refused_unasked() {
    let kind =
        |source: Source, digest: &str| client().resolve(&reference(source, digest)).unwrap_err().kind();
    let registry = |repository: &str| Source::Registry {
        url: "http://127.0.0.1:9".to_owned(),
        repository: repository.to_owned(),
    };
    for repository in ["", "../x", "a//b", "A", "a?b", "a/../b"] {
        assert_eq!(kind(registry(repository), &digest(b"")), ImageErrorKind::Malformed, "{repository}");
    }
    for (text, expected) in [
        ("", ImageErrorKind::Malformed),
        ("sha256:../../../etc/passwd", ImageErrorKind::Malformed),
        (&digest(b"").to_uppercase(), ImageErrorKind::Malformed),
        ("sha512:00", ImageErrorKind::Unsupported),
    ] {
        assert_eq!(kind(registry("a"), text), expected, "{text}");
    }
}
