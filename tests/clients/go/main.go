// Reads tokens by name, and prints the subject of each: null where it is refused.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
)

func main() {
	ctx := context.Background()
	var tokens map[string]string
	if err := json.NewDecoder(os.Stdin).Decode(&tokens); err != nil {
		log.Fatal(err)
	}
	verifier, err := NewVerifier(ctx)
	if err != nil {
		log.Fatal(err)
	}
	subjects := map[string]*string{}
	for name, token := range tokens {
		subjects[name] = nil
		if verified, err := Verify(ctx, verifier, token); err == nil {
			subjects[name] = &verified.Subject
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(subjects); err != nil {
		log.Fatal(err)
	}
}
