// Reads tokens by name, and prints the subject of each: null where it is refused.
import { text } from "node:stream/consumers";

import { verify } from "./verify.js";

const subjects = {};
for (const [name, token] of Object.entries(JSON.parse(await text(process.stdin)))) {
  subjects[name] = await verify(token).then((claims) => claims.sub, () => null);
}
console.log(JSON.stringify(subjects));
