//! PID 1 of the appliance. Never returns; a fault in a part is logged and the rest goes on.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use uvm_api::PowerAction;
use uvm_sys::PowerRequest;

use crate::config::{self, Config, ConsoleMode};
use crate::console::Console;
use crate::http::{Api, TlsFiles};
use crate::image::ClientOptions;
use crate::inventory::KernelInventory;
use crate::job::{Engine, Options, max_running};
use crate::node::NodeFacts;

/// Runs the appliance.
pub(crate) fn run() -> ! {
    crate::log::set_sink(|line| say_aside!("{line}"));
    let mounted = uvm_sys::mount_api_filesystems();
    let console = uvm_sys::attach_console(Path::new("/dev/console"));
    for error in [mounted.err(), console.err()].into_iter().flatten() {
        crate::log::warn(&error.to_string());
    }
    let (power, requests) = channel();
    if let Err(error) = watch_power(&power) {
        crate::log::warn(&format!("power events: {error}"));
    }
    let config = config::load().unwrap_or_else(|error| {
        crate::log::warn(&format!("no configuration: {error}"));
        Config::default()
    });
    let config = Arc::new(config);
    if let Err(error) = uvm_sys::set_hostname(&config.node) {
        crate::log::warn(&error.to_string());
    }
    crate::network::configure(&config);
    let image = ClientOptions {
        extra_ca_pem: config.image_store_ca.clone().map(String::into_bytes),
        ..ClientOptions::default()
    };
    let memory = uvm_sys::memory_total_bytes().unwrap_or_default();
    let engine = Engine::new(
        Arc::new(KernelInventory),
        Options { image, journal_dir: None, max_running: max_running(memory) },
    );
    let node = Arc::new(NodeFacts::new(config.node.clone()));
    start_api(&config, &engine, &node, power.clone());
    start_console(&config, &engine, &node, power);
    watch_devices();
    obey(&engine, &requests)
}

fn watch_power(power: &Sender<PowerAction>) -> Result<(), uvm_sys::Error> {
    let power = std::sync::Mutex::new(power.clone());
    let callback: uvm_sys::PowerCallback = Arc::new(move |request| {
        let action = match request {
            PowerRequest::Button | PowerRequest::Terminate | PowerRequest::PowerFail => PowerAction::PowerOff,
            // Ctrl-C on the console must not end the node.
            PowerRequest::Interrupt => return,
        };
        let _ = power.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(action);
    });
    uvm_sys::block_signals_and_reap(Arc::clone(&callback))?;
    uvm_sys::on_power_button(callback)?;
    Ok(())
}

fn start_api(config: &Config, engine: &Arc<Engine>, node: &Arc<NodeFacts>, power: Sender<PowerAction>) {
    let Some(settings) = &config.api else {
        return crate::log::warn("no API: the configuration has no certificate");
    };
    let files = TlsFiles {
        certificate: &settings.certificate,
        private_key: &settings.private_key,
        client_ca: &settings.client_ca,
    };
    let power = std::sync::Mutex::new(power);
    let api = Api {
        engine: Arc::clone(engine),
        node: Arc::clone(node),
        power: Arc::new(move |action| {
            let _ = power.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(action);
        }),
    };
    match crate::http::serve(settings.listen, &files, api) {
        Ok(address) => {
            node.listening();
            crate::log::info(&format!("API on https://{address}, {} ms after the kernel", node.boot_ms()));
        }
        Err(error) => crate::log::warn(&format!("no API on {}: {error}", settings.listen)),
    }
}

fn start_console(
    config: &Arc<Config>,
    engine: &Arc<Engine>,
    node: &Arc<NodeFacts>,
    power: Sender<PowerAction>,
) {
    if config.console == ConsoleMode::Off {
        return;
    }
    let console =
        Console { config: Arc::clone(config), engine: Arc::clone(engine), node: Arc::clone(node), power };
    let spawned = std::thread::Builder::new().name("console".to_owned()).spawn(move || console.run());
    if let Err(error) = spawned {
        crate::log::warn(&format!("no console: {error}"));
    }
}

/// Logs disks that come and go. The list itself is read anew each time it is asked for.
fn watch_devices() {
    let socket = match uvm_sys::UeventSocket::open() {
        Ok(socket) => socket,
        Err(error) => return crate::log::warn(&format!("device events: {error}")),
    };
    let spawned = std::thread::Builder::new().name("devices".to_owned()).spawn(move || {
        loop {
            match socket.next(Duration::from_secs(3600)) {
                Ok(Some(event)) if event.subsystem == "block" => {
                    crate::log::info(&format!("block device {:?}: {}", event.action, event.devpath));
                }
                Ok(_) => {}
                Err(error) => {
                    crate::log::warn(&format!("device events: {error}"));
                    std::thread::sleep(Duration::from_secs(10));
                }
            }
        }
    });
    if let Err(error) = spawned {
        crate::log::warn(&format!("device events: {error}"));
    }
}

/// Waits for power requests for ever, and carries them out.
fn obey(engine: &Engine, requests: &Receiver<PowerAction>) -> ! {
    loop {
        let Ok(action) = requests.recv() else {
            // Every sender is gone: nothing can ask any more, but PID 1 must not end.
            std::thread::park();
            continue;
        };
        let _ = engine.shut_down(true);
        let error = match action {
            PowerAction::PowerOff => uvm_sys::power_off(),
            PowerAction::Reboot => uvm_sys::reboot(),
        };
        crate::log::warn(&format!("{action:?}: {error}"));
        engine.resume();
    }
}
