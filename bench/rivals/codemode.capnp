# workerd runs the worker of codemode.js. FOLDER and PORT are filled in by codemode.py.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [(name = "main", worker = .main)],
  sockets = [(name = "http", address = "127.0.0.1:PORT", http = (), service = "main")],
);

const main :Workerd.Worker = (
  compatibilityDate = "2025-06-01",
  compatibilityFlags = ["nodejs_compat", "experimental"],
  bindings = [(name = "LOADER", workerLoader = (id = "programs"))],
  modules = [
    (name = "codemode.js", esModule = embed "codemode.js"),
MODULES
  ],
);
