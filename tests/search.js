// Asks the search of a site that MkDocs built, as its pages do: node search.js SITE QUERY...
// Prints for each query the pages that it finds, the best first.
const fs = require("fs");
const path = require("path");

const [site, ...queries] = process.argv.slice(2);
const scripts = path.join(site, "assets", "javascripts", "workers");
const worker = fs.readdirSync(scripts).find((name) => /^search.*\.js$/.test(name));

let receive, answer;
globalThis.self = globalThis;
globalThis.addEventListener = (_, listener) => { receive = listener; };
globalThis.postMessage = (message) => answer(message);
(0, eval)(fs.readFileSync(path.join(scripts, worker), "utf8"));
const ask = (type, data) => new Promise((done) => { answer = done; receive({ data: { type, data } }); });

(async () => {
  const index = JSON.parse(fs.readFileSync(path.join(site, "search", "search_index.json"), "utf8"));
  await ask(0, { ...index, options: {} }); // the types of messages: 0 sets up, 2 asks
  const found = {};
  for (const query of queries) {
    const pages = (await ask(2, query)).data.items;
    found[query] = pages.map(([best]) => best.location);
  }
  console.log(JSON.stringify(found));
})();
