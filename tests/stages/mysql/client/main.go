// A client by go-sql-driver: client ADDRESS NAME AUTHORITY STATEMENT prints the first column of each row.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"fmt"
	"os"

	"github.com/go-sql-driver/mysql"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	address, name, authority, statement := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	pem, err := os.ReadFile(authority)
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	check(mysql.RegisterTLSConfig("named", &tls.Config{ServerName: name, RootCAs: roots}))
	config := mysql.NewConfig()
	config.User, config.Passwd, config.Net, config.Addr, config.TLSConfig = "app", "secret", "tcp", address, "named"
	db, err := sql.Open("mysql", config.FormatDSN())
	check(err)
	// A parameter: a prepared statement.
	rows, err := db.Query(statement+" where 1 = ?", 1)
	check(err)
	for rows.Next() {
		var value string
		check(rows.Scan(&value))
		fmt.Println(value)
	}
	check(rows.Err())
}
