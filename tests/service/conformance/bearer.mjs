// The conformance suite sends no tokens. Loaded before it, this adds one to each of its requests.
import http from "node:http";
import { createRequire, syncBuiltinESMExports } from "node:module";

const authorization = `Bearer ${process.env.MCP_TOKEN}`;

const { fetch } = globalThis;
globalThis.fetch = (input, init = {}) => {
  const headers = new Headers(init.headers ?? input.headers);
  headers.set("authorization", authorization);
  return fetch(input, { ...init, headers });
};

const undici = createRequire(process.argv[1])("undici");
const { request: send } = undici;
undici.request = (url, options = {}) => {
  return send(url, { ...options, headers: { ...options.headers, authorization } });
};

const { request } = http;
http.request = (...args) => {
  const options = args.find((each) => typeof each === "object" && !(each instanceof URL));
  if (options) options.headers = { ...options.headers, authorization };
  return request(...args);
};
syncBuiltinESMExports();
