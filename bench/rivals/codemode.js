// A worker that runs each posted program with codemode's executor; `tools.noop` is a function here.
import { DynamicWorkerExecutor } from "./index.js";

export default {
  async fetch(request, env) {
    const executor = new DynamicWorkerExecutor({ loader: env.LOADER });
    const tools = [{ name: "codemode", fns: { noop: async ({ n }) => ({ n }) } }];
    return Response.json(await executor.execute(await request.text(), tools));
  },
};
